//! An answer as its client can read it.

use std::io::Write;

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::{
    json::{self, Detail},
    model::{Application, Applications, Instance},
    ops::Done,
    xml,
};

/// What a client can read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wants {
    pub(super) json: bool,
    pub(super) gzip: bool,
    pub(super) detail: Detail,
}

impl Wants {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let says = |name: &str, word: &str| {
            let values = headers.get_all(name).iter();
            let mut values = values.filter_map(|value| value.to_str().ok());
            values.any(|value| value.to_ascii_lowercase().contains(word))
        };
        Self {
            json: says("accept", "json"),
            gzip: says("accept-encoding", "gzip"),
            detail: if says("x-eureka-accept", "compact") {
                Detail::Compact
            } else {
                Detail::Full
            },
        }
    }

    pub(super) fn applications(self, all: &Applications) -> Vec<u8> {
        if self.json {
            json::applications(all, self.detail)
        } else {
            xml::applications(all, self.detail)
        }
    }

    pub(super) fn application(self, one: &Application) -> Vec<u8> {
        if self.json {
            json::application(one, self.detail)
        } else {
            xml::application(one, self.detail)
        }
    }

    pub(super) fn instance(self, one: &Instance) -> Vec<u8> {
        if self.json {
            json::instance(one, self.detail)
        } else {
            xml::instance(one, self.detail)
        }
    }

    /// 200 with a document that is already as it goes out.
    pub(super) fn packed(self, document: Bytes) -> Response {
        let mut response = Response::new(Body::from(document));
        let kind = if self.json {
            "application/json"
        } else {
            "application/xml"
        };
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        let by = HeaderValue::from_static("accept, accept-encoding, x-eureka-accept");
        headers.insert(header::VARY, by);
        if self.gzip {
            let gzip = HeaderValue::from_static("gzip");
            headers.insert(header::CONTENT_ENCODING, gzip);
        }
        response
    }

    pub(super) fn pack(self, document: Vec<u8>) -> Bytes {
        if !self.gzip {
            return document.into();
        }
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        let packed = encoder.write_all(&document).and_then(|()| encoder.finish());
        packed.expect("a vector takes everything").into()
    }

    pub(super) fn document(self, document: Vec<u8>) -> Response {
        let packed = self.pack(document);
        self.packed(packed)
    }
}

pub(super) fn empty(status: StatusCode) -> Response {
    status.into_response()
}

pub(super) fn text(status: StatusCode, sentence: impl Into<String>) -> Response {
    (status, sentence.into()).into_response()
}

impl Done {
    pub(super) fn respond(self, wants: Wants, ok: StatusCode) -> Response {
        let status = self.status();
        match self {
            Self::Ok => empty(ok),
            Self::Unknown => empty(status),
            Self::Conflict(held) => {
                let mut response = wants.document(wants.instance(&held));
                *response.status_mut() = status;
                response
            }
            Self::Bad(why) => text(status, why),
            Self::BadWord => text(
                status,
                "expected UP, DOWN, STARTING, OUT_OF_SERVICE or UNKNOWN",
            ),
            Self::Elsewhere(why) => {
                let mut response = text(status, why);
                let again = HeaderValue::from_static("1");
                response.headers_mut().insert(header::RETRY_AFTER, again);
                response
            }
        }
    }
}
