//! Eureka's XML: what Java's XStream reads and writes.

use std::{fmt::Write as _, io};

use quick_xml::{
    Reader, Writer,
    events::{BytesEnd, BytesStart, BytesText, Event},
};
use serde_json::{Map, Value};

use super::{
    json::{Detail, millis},
    model::{Application, Applications, Instance, Port, status_name},
};

/// Elements within elements; an instance has four.
const MAX_DEPTH: usize = 8;

type Out = Writer<Vec<u8>>;

/// `<applications>…`.
pub(crate) fn applications(all: &Applications, detail: Detail) -> Vec<u8> {
    write(|w| {
        within(w, "applications", |w| {
            text(w, "versions__delta", &all.version.to_string())?;
            text(w, "apps__hashcode", &all.hash)?;
            for app in &all.applications {
                write_application(w, app, detail)?;
            }
            Ok(())
        })
    })
}

/// `<application>…`.
pub(crate) fn application(app: &Application, detail: Detail) -> Vec<u8> {
    write(|w| write_application(w, app, detail))
}

/// `<instance>…`.
pub(crate) fn instance(one: &Instance, detail: Detail) -> Vec<u8> {
    write(|w| write_instance(w, one, detail))
}

fn write(content: impl FnOnce(&mut Out) -> io::Result<()>) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    content(&mut writer).expect("a vector takes everything");
    writer.into_inner()
}

fn within(
    w: &mut Out,
    name: &str,
    content: impl FnOnce(&mut Out) -> io::Result<()>,
) -> io::Result<()> {
    w.write_event(Event::Start(BytesStart::new(name)))?;
    content(w)?;
    w.write_event(Event::End(BytesEnd::new(name)))
}

fn text(w: &mut Out, name: &str, value: &str) -> io::Result<()> {
    within(w, name, |w| {
        w.write_event(Event::Text(BytesText::new(&printable(value))))
    })
}

fn some(w: &mut Out, name: &str, value: Option<&str>) -> io::Result<()> {
    value.map_or(Ok(()), |value| text(w, name, value))
}

/// XML 1.0 has no way to write most control characters: one of them would make every reader
/// refuse the whole document.
fn printable(value: &str) -> String {
    let legal = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
    value
        .chars()
        .map(|c| if legal(c) { c } else { '\u{fffd}' })
        .collect()
}

fn write_application(w: &mut Out, app: &Application, detail: Detail) -> io::Result<()> {
    within(w, "application", |w| {
        text(w, "name", &app.name)?;
        for one in &app.instances {
            write_instance(w, one, detail)?;
        }
        Ok(())
    })
}

/// In the order of Java's converter.
fn write_instance(w: &mut Out, one: &Instance, detail: Detail) -> io::Result<()> {
    let full = detail == Detail::Full;
    within(w, "instance", |w| {
        text(w, "instanceId", &one.id)?;
        text(w, "hostName", &one.host)?;
        text(w, "app", &one.app)?;
        text(w, "ipAddr", &one.ip)?;
        if full {
            some(w, "sid", one.sid.as_deref())?;
        }
        text(w, "status", status_name(one.status))?;
        if full {
            text(w, "overriddenstatus", status_name(one.overridden))?;
        }
        write_port(w, "port", one.port)?;
        write_port(w, "securePort", one.secure_port)?;
        if full {
            text(w, "countryId", &one.country.to_string())?;
        }
        write_data_center(w, one, detail)?;
        if full {
            write_lease(w, one)?;
            write_metadata(w, one)?;
            some(w, "appGroupName", one.app_group.as_deref())?;
            some(w, "homePageUrl", one.urls.home.as_deref())?;
            some(w, "statusPageUrl", one.urls.status.as_deref())?;
            some(w, "healthCheckUrl", one.urls.health.as_deref())?;
            some(w, "secureHealthCheckUrl", one.urls.secure_health.as_deref())?;
        }
        some(w, "vipAddress", one.vip.as_deref())?;
        some(w, "secureVipAddress", one.secure_vip.as_deref())?;
        if full {
            let coordinating = one.is_coordinating.to_string();
            text(w, "isCoordinatingDiscoveryServer", &coordinating)?;
        }
        text(w, "lastUpdatedTimestamp", &millis(one.updated_ms))?;
        if full {
            text(w, "lastDirtyTimestamp", &millis(one.dirty_ms))?;
        }
        text(w, "actionType", one.action.name())?;
        some(w, "asgName", one.asg.as_deref())
    })
}

fn write_port(w: &mut Out, name: &str, port: Port) -> io::Result<()> {
    let enabled = if port.enabled { "true" } else { "false" };
    let number = port.number.to_string();
    w.create_element(name)
        .with_attribute(("enabled", enabled))
        .write_text_content(BytesText::new(&number))?;
    Ok(())
}

fn write_data_center(w: &mut Out, one: &Instance, detail: Detail) -> io::Result<()> {
    let start =
        BytesStart::new("dataCenterInfo").with_attributes([("class", one.data_center.class())]);
    w.write_event(Event::Start(start))?;
    text(w, "name", one.data_center.name())?;
    if one.data_center == super::model::DataCenter::Amazon {
        within(w, "metadata", |w| {
            let kept = one.data_center_metadata.iter();
            for (key, value) in kept.filter(|(key, _)| detail.keeps(key)) {
                text(w, &escape_name(key), value)?;
            }
            Ok(())
        })?;
    }
    w.write_event(Event::End(BytesEnd::new("dataCenterInfo")))
}

fn write_lease(w: &mut Out, one: &Instance) -> io::Result<()> {
    within(w, "leaseInfo", |w| {
        for (name, value) in [
            ("renewalIntervalInSecs", i64::from(one.lease.renewal_secs)),
            ("durationInSecs", i64::from(one.lease.duration_secs)),
            ("registrationTimestamp", one.lease.registered_ms),
            ("lastRenewalTimestamp", one.lease.renewed_ms),
            ("evictionTimestamp", 0),
            ("serviceUpTimestamp", one.lease.up_ms),
        ] {
            text(w, name, &value.to_string())?;
        }
        Ok(())
    })
}

fn write_metadata(w: &mut Out, one: &Instance) -> io::Result<()> {
    if one.metadata.is_empty() {
        w.create_element("metadata")
            .with_attribute(("class", super::EMPTY_MAP))
            .write_empty()?;
        return Ok(());
    }
    within(w, "metadata", |w| {
        for (key, value) in &one.metadata {
            text(w, &escape_name(key), value)?;
        }
        Ok(())
    })
}

/// A key as an element's name. Source: XStream's `XmlFriendlyNameCoder`.
pub(crate) fn escape_name(key: &str) -> String {
    let mut name = String::with_capacity(key.len());
    for (i, c) in key.chars().enumerate() {
        match c {
            '_' => name.push_str("__"),
            '$' => name.push_str("_-"),
            c if is_name_char(c) && (i > 0 || is_name_start(c)) => name.push(c),
            c => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    write!(name, "_.{unit:04x}").expect("strings take everything");
                }
            }
        }
    }
    name
}

fn is_name_start(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_'
}

/// The colon is legal too, but would name a namespace that nobody has declared.
fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_')
}

/// [`escape_name`] undone; what is not an escape stays.
pub(crate) fn unescape_name(name: &str) -> String {
    let mut units: Vec<u16> = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        let escape = if rest.starts_with("__") {
            Some((u16::from(b'_'), 2))
        } else if rest.starts_with("_-") {
            Some((u16::from(b'$'), 2))
        } else {
            let hex = rest.strip_prefix("_.").and_then(|hex| hex.get(..4));
            hex.and_then(|hex| u16::from_str_radix(hex, 16).ok())
                .map(|unit| (unit, 6))
        };
        if let Some((unit, len)) = escape {
            units.push(unit);
            rest = &rest[len..];
        } else {
            units.extend_from_slice(c.encode_utf16(&mut [0; 2]));
            rest = &rest[c.len_utf8()..];
        }
    }
    String::from_utf16_lossy(&units)
}

/// Reads `<instance>…` into the shape that Eureka's JSON has, for the reader of that.
///
/// Document types are refused, so nothing expands; five entities and numbers of characters are
/// all that XML has without one.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn read(body: &str) -> Result<Value, String> {
    let mut reader = Reader::from_str(body);
    let mut open: Vec<Element> = Vec::new();
    loop {
        let event = reader.read_event().map_err(|e| format!("not XML: {e}"))?;
        match event {
            Event::Start(start) => {
                if open.len() == MAX_DEPTH {
                    return Err(format!("more than {MAX_DEPTH} elements within each other"));
                }
                open.push(Element::new(&start)?);
            }
            Event::Empty(start) => {
                let empty = Element::new(&start)?;
                if let Some(root) = close(&mut open, empty) {
                    return Ok(root);
                }
            }
            Event::End(_) => {
                let ended = open.pop().ok_or("an end without a start")?;
                if let Some(root) = close(&mut open, ended) {
                    return Ok(root);
                }
            }
            Event::Text(part) => push(&mut open, &part.xml10_content()),
            Event::CData(part) => push(&mut open, &part.xml10_content()),
            Event::GeneralRef(entity) => {
                let resolved = match entity.resolve_char_ref() {
                    Ok(Some(c)) => c.to_string(),
                    Ok(None) => {
                        let name = entity.xml10_content();
                        let known = quick_xml::escape::resolve_predefined_entity(&name);
                        known
                            .ok_or_else(|| format!("unknown entity &{name};"))?
                            .to_owned()
                    }
                    Err(error) => return Err(format!("not XML: {error}")),
                };
                push(&mut open, &resolved);
            }
            Event::DocType(_) => return Err("document types are not taken".to_owned()),
            Event::Eof => return Err("the document ends early".to_owned()),
            Event::Decl(_) | Event::PI(_) | Event::Comment(_) => {}
        }
    }
}

struct Element {
    name: String,
    text: String,
    enabled: Option<String>,
    children: Map<String, Value>,
}

impl Element {
    fn new(start: &BytesStart<'_>) -> Result<Self, String> {
        let mut enabled = None;
        for attribute in start.attributes() {
            let attribute = attribute.map_err(|e| format!("not XML: {e}"))?;
            if attribute.key.as_ref() == "enabled" {
                enabled = Some(attribute.value.into_owned());
            }
        }
        Ok(Self {
            name: start.name().as_ref().to_owned(),
            text: String::new(),
            enabled,
            children: Map::new(),
        })
    }

    fn into_value(self) -> Value {
        if let Some(enabled) = self.enabled {
            return serde_json::json!({"$": self.text.trim(), "@enabled": enabled});
        }
        if self.children.is_empty() {
            return Value::String(self.text);
        }
        Value::Object(self.children)
    }
}

fn push(open: &mut [Element], part: &str) {
    if let Some(element) = open.last_mut() {
        element.text.push_str(part);
    }
}

/// Gives an element that ended to the one around it; the outermost is the document.
fn close(open: &mut [Element], ended: Element) -> Option<Value> {
    let name = ended.name.clone();
    let Some(around) = open.last_mut() else {
        let mut document = Map::new();
        document.insert(name, ended.into_value());
        return Some(Value::Object(document));
    };
    // Names of fields have no underscores, so this changes keys of metadata only.
    around
        .children
        .insert(unescape_name(&name), ended.into_value());
    None
}
