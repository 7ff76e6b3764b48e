//! E1 to E19 (E13 is in `peers`).

use serde_json::{Value, json};

use super::{
    delete, fetch,
    http::{JSON, REPLICA, ask, get},
    of, one, post, put, register, serving, spring, strict,
};
use crate::support::start;

#[tokio::test]
async fn e1_a_registration_is_answered_204_and_reads_back_in_java_s_form() {
    let (_server, to) = serving().await;
    let answer = post(to, "FOO", &spring("FOO", "h:foo:8080", 1000)).await;
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    let found = one(to, "FOO", "h:foo:8080").await;
    assert_eq!(found["port"], json!({"$": 8080, "@enabled": "true"}));
    assert_eq!(found["securePort"], json!({"$": 443, "@enabled": "false"}));
    assert_eq!(found["metadata"], json!({"management.port": "8081"}));
    assert_eq!(found["lastDirtyTimestamp"], "1000");
    assert_eq!(found["leaseInfo"]["durationInSecs"], 90);
    assert_eq!(found["vipAddress"], "FOO");
    let by_id = get(to, "/eureka/instances/h:foo:8080").await.json();
    assert_eq!(by_id["instance"]["app"], "FOO");
    assert_eq!(get(to, "/eureka/instances/nobody").await.status, 404);
}

#[tokio::test]
async fn e2_what_is_missing_or_mistaken_is_refused_with_a_sentence() {
    let (_server, to) = serving().await;
    for (pointer, why) in [
        ("hostName", "Missing hostname"),
        ("ipAddr", "Missing ip address"),
        ("app", "Missing appName"),
        ("dataCenterInfo", "Missing dataCenterInfo"),
    ] {
        for value in [None, Some(json!(" ")), Some(Value::Null)] {
            let mut body = spring("FOO", "i", 1);
            let fields = body["instance"].as_object_mut().expect("object");
            match value {
                None => fields.remove(pointer),
                Some(value) => fields.insert(pointer.to_owned(), value),
            };
            let answer = post(to, "FOO", &body).await;
            assert_eq!(
                (answer.status, answer.text().as_str()),
                (400, why),
                "{pointer}"
            );
        }
    }
    let mut nameless = spring("FOO", "i", 1);
    nameless["instance"]["dataCenterInfo"] = json!({"@class": "x"});
    assert_eq!(
        post(to, "FOO", &nameless).await.text(),
        "Missing dataCenterInfo Name"
    );
    let mismatch = post(to, "BAR", &spring("FOO", "i", 1)).await;
    assert_eq!(mismatch.status, 400);
    assert!(mismatch.text().contains("Mismatched appName"));
    for (what, field, value) in [
        ("a host for an address", "ipAddr", json!("host.example")),
        ("no port", "port", json!({"$": 0, "@enabled": "true"})),
        ("a port too far", "port", json!(70000)),
        ("a word for a port", "port", json!("http")),
        ("a list for a map", "metadata", json!(["a"])),
        ("too much", "metadata", json!({"k": "x".repeat(5000)})),
        ("too long", "homePageUrl", json!("x".repeat(5000))),
    ] {
        let mut body = spring("FOO", "i", 1);
        body["instance"][field] = value;
        let fields = body["instance"].as_object_mut().expect("object");
        fields.remove("securePort");
        let mut off = json!({"$": 0, "@enabled": "false"});
        if field == "port" {
            fields.insert("securePort".to_owned(), off.take());
        }
        assert_eq!(post(to, "FOO", &body).await.status, 400, "{what}");
    }
    for body in [
        "",
        "{",
        "[]",
        "{\"instance\":1}",
        "<instance>",
        "<a/>",
        "\u{0}",
    ] {
        let answer = ask(to, "POST", "/eureka/apps/FOO", &[], body).await;
        assert_eq!(answer.status, 400, "{body:?}");
    }
    let huge = vec![b' '; 100_000];
    let answer = ask(to, "POST", "/eureka/apps/FOO", &[], huge).await;
    assert_eq!(answer.status, 413);
    // The path in another case, and an id that falls back to the host.
    let mut body = spring("foo", "i", 1);
    body["instance"]
        .as_object_mut()
        .expect("object")
        .remove("instanceId");
    assert_eq!(post(to, "fOO", &body).await.status, 204);
    assert_eq!(one(to, "foo", "h").await["app"], "FOO");
}

#[tokio::test]
async fn e3_a_heartbeat_is_answered_without_a_body() {
    let (_server, to) = serving().await;
    register(to, "FOO", "i", 5).await;
    for (path, status) in [
        ("/eureka/apps/FOO/i?status=UP&lastDirtyTimestamp=5", 200),
        ("/eureka/apps/foo/i", 200),
        ("/eureka/apps/FOO/j?status=UP&lastDirtyTimestamp=5", 404),
        ("/eureka/apps/BAR/i", 404),
    ] {
        let answer = put(to, path).await;
        assert_eq!((answer.status, answer.body.len()), (status, 0), "{path}");
        assert_eq!(answer.header("content-length"), "0", "{path}");
    }
}

#[tokio::test]
async fn e4_a_heartbeat_of_another_time_is_told_so() {
    let (_server, to) = serving().await;
    register(to, "FOO", "i", 100).await;
    let beat = |dirty: u32| format!("/eureka/apps/FOO/i?status=UP&lastDirtyTimestamp={dirty}");
    for (dirty, replica, status) in [
        (101, false, 404),
        (101, true, 404),
        (99, false, 200),
        (99, true, 409),
        (100, false, 200),
        (100, true, 200),
    ] {
        let headers = if replica {
            vec![JSON, REPLICA]
        } else {
            vec![JSON]
        };
        let answer = ask(to, "PUT", &beat(dirty), &headers, "").await;
        assert_eq!(answer.status, status, "{dirty} {replica}");
        if status == 409 {
            strict::instance(&answer.json()["instance"]).expect("the stored one");
            assert_eq!(answer.json()["instance"]["lastDirtyTimestamp"], "100");
        } else {
            assert!(answer.body.is_empty());
        }
    }
}

#[tokio::test]
async fn e5_a_cancel_takes_the_override_along() {
    let (_server, to) = serving().await;
    register(to, "FOO", "i", 1).await;
    let out = put(to, "/eureka/apps/FOO/i/status?value=OUT_OF_SERVICE").await;
    assert_eq!(out.status, 200);
    // It stays over a registration by the instance itself.
    register(to, "FOO", "i", 2).await;
    assert_eq!(one(to, "FOO", "i").await["status"], "OUT_OF_SERVICE");
    let overrides = get(to, "/eureka/serverinfo/statusoverrides").await.json();
    assert_eq!(overrides, json!({"i": "OUT_OF_SERVICE"}));
    assert_eq!(delete(to, "/eureka/apps/FOO/i").await.status, 200);
    let again = delete(to, "/eureka/apps/FOO/i").await;
    assert_eq!((again.status, again.body.len()), (404, 0));
    register(to, "FOO", "i", 3).await;
    let back = one(to, "FOO", "i").await;
    assert_eq!(
        (&back["status"], &back["overriddenStatus"]),
        (&json!("UP"), &json!("UNKNOWN"))
    );
}

#[tokio::test]
async fn e6_an_instance_that_is_down_shows_so_whatever_an_operator_said() {
    let (_server, to) = serving().await;
    register(to, "FOO", "i", 1).await;
    put(to, "/eureka/apps/FOO/i/status?value=OUT_OF_SERVICE").await;
    for (dirty, status) in [(2, "STARTING"), (3, "DOWN")] {
        let mut body = spring("FOO", "i", dirty);
        body["instance"]["status"] = json!(status);
        post(to, "FOO", &body).await;
        let shown = one(to, "FOO", "i").await;
        assert_eq!(shown["status"], status);
        assert_eq!(shown["overriddenStatus"], "OUT_OF_SERVICE");
    }
    register(to, "FOO", "i", 4).await;
    assert_eq!(one(to, "FOO", "i").await["status"], "OUT_OF_SERVICE");
}

#[tokio::test]
async fn e7_a_status_of_nobody_is_404_and_no_status_at_all_500() {
    let (_server, to) = serving().await;
    register(to, "FOO", "i", 1).await;
    assert_eq!(
        put(to, "/eureka/apps/FOO/x/status?value=UP").await.status,
        404
    );
    assert_eq!(delete(to, "/eureka/apps/FOO/x/status").await.status, 404);
    for path in ["?value=up_and_away", "", "?value="] {
        let answer = put(to, &format!("/eureka/apps/FOO/i/status{path}")).await;
        assert_eq!(answer.status, 500, "{path}");
    }
    assert_eq!(
        delete(to, "/eureka/apps/FOO/i/status?value=x").await.status,
        500
    );
    assert_eq!(
        put(to, "/eureka/asg/g/status?value=DISABLED").await.status,
        400
    );
}

#[tokio::test]
async fn e7_an_override_is_dropped_for_what_is_said_or_for_unknown() {
    let (_server, to) = serving().await;
    register(to, "FOO", "i", 1).await;
    let path = "/eureka/apps/FOO/i/status";
    assert_eq!(
        delete(to, path).await.status,
        200,
        "there is none: nothing changes"
    );
    assert_eq!(one(to, "FOO", "i").await["status"], "UP");
    put(to, &format!("{path}?value=OUT_OF_SERVICE")).await;
    assert_eq!(delete(to, &format!("{path}?value=UP")).await.status, 200);
    assert_eq!(one(to, "FOO", "i").await["status"], "UP");
    put(to, &format!("{path}?value=OUT_OF_SERVICE")).await;
    assert_eq!(delete(to, path).await.status, 200);
    assert_eq!(one(to, "FOO", "i").await["status"], "UNKNOWN");
    assert_eq!(
        put(to, "/eureka/apps/FOO/i?status=UP").await.status,
        404,
        "register again"
    );
    register(to, "FOO", "i", 2).await;
    assert_eq!(one(to, "FOO", "i").await["status"], "UP");
}

#[tokio::test]
async fn e8_the_hash_counts_statuses() {
    let (_server, to) = serving().await;
    let hash = || async { fetch(to, "/eureka/apps").await["apps__hashcode"].clone() };
    assert_eq!(hash().await, "");
    register(to, "FOO", "a", 1).await;
    register(to, "BAR", "b", 1).await;
    assert_eq!(hash().await, "UP_2_");
    let mut down = spring("FOO", "c", 1);
    down["instance"]["status"] = json!("DOWN");
    post(to, "FOO", &down).await;
    assert_eq!(hash().await, "DOWN_1_UP_2_");
}

#[tokio::test]
async fn e9_a_delta_has_every_change_whole_and_the_full_hash() {
    let (_server, to) = serving().await;
    for id in ["a", "b", "c"] {
        register(to, "FOO", id, 1).await;
    }
    let before = fetch(to, "/eureka/apps").await;
    put(to, "/eureka/apps/FOO/b/status?value=OUT_OF_SERVICE").await;
    delete(to, "/eureka/apps/FOO/c").await;
    register(to, "BAR", "d", 1).await;
    let (delta, full) = (
        fetch(to, "/eureka/apps/delta").await,
        fetch(to, "/eureka/apps").await,
    );
    let named = |name: &str, action: &str| (name.to_owned(), action.to_owned());
    let mut want = vec![
        named("BAR/d", "ADDED"),
        named("FOO/a", "ADDED"),
        named("FOO/b", "MODIFIED"),
        named("FOO/c", "DELETED"),
    ];
    let mut got = of(&delta, "actionType");
    got.sort();
    want.sort();
    assert_eq!(got, want);
    assert_eq!(delta["apps__hashcode"], full["apps__hashcode"]);
    assert_eq!(delta["apps__hashcode"], "OUT_OF_SERVICE_1_UP_2_");
    let gone = of(&delta, "hostName")
        .into_iter()
        .find(|(name, _)| name == "FOO/c");
    assert_eq!(gone, Some(named("FOO/c", "h")), "whole, though it is gone");
    // One counter for both, that grows with every change.
    assert_eq!(delta["versions__delta"], full["versions__delta"]);
    let version = |document: &Value| document["versions__delta"].as_str().map(str::parse::<i64>);
    let (old, new) = (version(&before), version(&full));
    let (Some(Ok(old)), Some(Ok(new))) = (old, new) else {
        panic!("versions are numbers");
    };
    assert!(new >= old + 3 && old > 0, "{old} {new}");
}

#[tokio::test]
async fn e9_versions_of_two_servers_and_two_lives_are_apart() {
    let mut seen = std::collections::HashSet::new();
    for _ in 0..3 {
        let (_server, to) = serving().await;
        let version = fetch(to, "/eureka/apps").await["versions__delta"].clone();
        assert!(seen.insert(version.as_str().expect("text").to_owned()));
    }
}

#[tokio::test]
async fn e10_each_client_gets_what_it_can_read() {
    let (_server, to) = serving().await;
    register(to, "FOO", "i", 1).await;
    let (json, xml) = ("application/json", "application/xml");
    for (accept, want) in [
        (Some("application/json"), json),
        (Some("application/json, application/*+json"), json),
        (Some("application/vnd.netflix.eureka.v2+JSON"), json),
        (Some("application/xml"), xml),
        (Some("*/*"), xml),
        (None, xml),
    ] {
        for path in [
            "/eureka/apps/",
            "/eureka/apps/delta",
            "/eureka/apps/FOO",
            "/eureka/apps/FOO/i",
            "/eureka/vips/FOO",
            "/eureka/status",
        ] {
            let accept: Vec<_> = accept
                .map(|accept| ("accept", accept))
                .into_iter()
                .collect();
            let plain = ask(to, "GET", path, &accept, "").await;
            assert_eq!(plain.header("content-type"), want, "{accept:?}");
            assert_eq!(plain.header("content-encoding"), "");
            let mut headers = accept.clone();
            headers.push(("accept-encoding", "deflate, gzip;q=1.0"));
            let packed = ask(to, "GET", path, &headers, "").await;
            assert_eq!(packed.header("content-type"), want);
            assert_eq!(packed.header("content-encoding"), "gzip");
            let mut unpacked = String::new();
            let mut decoder = flate2::read::GzDecoder::new(&*packed.body);
            std::io::Read::read_to_string(&mut decoder, &mut unpacked).expect("gzip");
            assert_eq!(unpacked, plain.text());
            headers[accept.len()].1 = "identity";
            assert_eq!(
                ask(to, "GET", path, &headers, "").await.text(),
                plain.text()
            );
        }
    }
}

#[tokio::test]
async fn e10_a_compressed_registration_is_read_and_a_bomb_is_not() {
    let (_server, to) = serving().await;
    let gzip = |plain: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::Write::write_all(&mut encoder, plain).expect("vector");
        encoder.finish().expect("vector")
    };
    let headers = [
        ("content-encoding", "gzip"),
        ("content-type", "application/json"),
    ];
    let body = gzip(spring("FOO", "i", 1).to_string().as_bytes());
    let answer = ask(to, "POST", "/eureka/apps/FOO", &headers, body).await;
    assert_eq!(answer.status, 204, "{}", answer.text());
    let bomb = gzip(&vec![b' '; 50 << 20]);
    assert!(bomb.len() < 60_000, "small enough to be sent");
    assert_eq!(
        ask(to, "POST", "/eureka/apps/FOO", &headers, bomb)
            .await
            .status,
        413
    );
    let not = ask(to, "POST", "/eureka/apps/FOO", &headers, "{}").await;
    assert_eq!(not.status, 400);
}

#[tokio::test]
async fn e11_the_compact_form_leaves_out_what_callers_do_not_need() {
    let (_server, to) = serving().await;
    let mut amazon = spring("FOO", "i", 1);
    amazon["instance"]["dataCenterInfo"] = json!({
        "@class": "com.netflix.appinfo.AmazonInfo", "name": "Amazon",
        "metadata": {"instance-id": "i-1", "local-ipv4": "10.0.0.1", "ami-id": "ami", "mac": "m"},
    });
    post(to, "FOO", &amazon).await;
    let headers = [JSON, ("x-eureka-accept", "compact")];
    for path in ["/eureka/apps", "/eureka/apps/FOO/i"] {
        let document = ask(to, "GET", path, &headers, "").await.json();
        let found = match path {
            "/eureka/apps" => document["applications"]["application"][0]["instance"][0].clone(),
            _ => document["instance"].clone(),
        };
        strict::instance(&found).expect("still Java's");
        for gone in [
            "leaseInfo",
            "metadata",
            "homePageUrl",
            "statusPageUrl",
            "healthCheckUrl",
            "overriddenStatus",
            "countryId",
            "lastDirtyTimestamp",
            "isCoordinatingDiscoveryServer",
        ] {
            assert!(found.get(gone).is_none(), "{gone}");
        }
        assert_eq!(found["instanceId"], "i");
        assert_eq!(
            (&found["status"], &found["port"]["$"]),
            (&json!("UP"), &json!(8080))
        );
        let kept = json!({"instance-id": "i-1", "local-ipv4": "10.0.0.1"});
        assert_eq!(found["dataCenterInfo"]["metadata"], kept);
    }
    assert_eq!(
        one(to, "FOO", "i").await["dataCenterInfo"]["metadata"]["mac"],
        "m"
    );
    let xml = ask(to, "GET", "/eureka/apps", &headers[1..], "")
        .await
        .text();
    assert!(
        xml.contains("<instanceId>i</instanceId>") && !xml.contains("leaseInfo"),
        "{xml}"
    );
}

#[tokio::test]
async fn e12_an_instance_is_found_under_each_of_its_vips() {
    let (_server, to) = serving().await;
    let mut body = spring("FOO", "i", 1);
    body["instance"]["vipAddress"] = json!("a,b");
    body["instance"]["secureVipAddress"] = json!("c");
    post(to, "FOO", &body).await;
    for (path, found) in [
        ("vips/a", 1),
        ("vips/b", 1),
        ("vips/a,b", 0),
        ("vips/c", 0),
        ("svips/c", 1),
        ("svips/a", 0),
        ("vips/nobody", 0),
    ] {
        let answer = fetch(to, &format!("/eureka/{path}")).await;
        assert_eq!(of(&answer, "status").len(), found, "{path}");
    }
}

#[tokio::test]
async fn e15_a_server_that_is_catching_up_takes_registrations_and_answers_no_lists() {
    // A seed that is not there: it waits for it before it serves.
    let nowhere = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
    let server = start("n1", &[nowhere.local_addr().expect("address")]).await;
    let to = server.shared().http;
    let paths = [
        "apps",
        "apps/delta",
        "apps/FOO",
        "apps/FOO/i",
        "instances/i",
        "vips/FOO",
        "svips/FOO",
    ];
    assert!(!server.shared().is_serving(), "the test looks early enough");
    for path in paths {
        let answer = get(to, &format!("/eureka/{path}")).await;
        assert_eq!(answer.status, 403, "{path}");
    }
    register(to, "FOO", "i", 1).await;
    assert_eq!(put(to, "/eureka/apps/FOO/i").await.status, 200);
    crate::support::eventually("serves alone", || async { server.shared().is_serving() }).await;
    for path in paths {
        assert_eq!(
            get(to, &format!("/eureka/{path}")).await.status,
            200,
            "{path}"
        );
    }
}

#[tokio::test]
async fn e16_lists_are_lists_and_nothing_of_ours_shows() {
    let (_server, to) = serving().await;
    let none = fetch(to, "/eureka/apps").await;
    assert_eq!(none["application"], json!([]));
    register(to, "FOO", "i", 1).await;
    let one_app = fetch(to, "/eureka/apps").await;
    assert_eq!(one_app["application"].as_array().map(Vec::len), Some(1));
    let app = get(to, "/eureka/apps/FOO").await.json();
    strict::application(&app["application"]).expect("one application");
    assert_eq!(get(to, "/eureka/apps/NOBODY").await.status, 404);
}

#[tokio::test]
async fn e17_xml_is_escaped_where_it_must_be() {
    let (_server, to) = serving().await;
    let mut body = spring("FOO", "i", 1);
    body["instance"]["metadata"] = json!({"a_b": "<&>\"'", "a$b": "1", "9 lives": "\u{1}ä"});
    post(to, "FOO", &body).await;
    let xml = ask(to, "GET", "/eureka/apps", &[], "").await.text();
    for part in [
        "<a__b>&lt;&amp;&gt;&quot;&apos;</a__b>",
        "<a_-b>1</a_-b>",
        "<_.0039_.0020lives>\u{fffd}ä</_.0039_.0020lives>",
        "<port enabled=\"true\">8080</port><securePort enabled=\"false\">443</securePort>",
        "<overriddenstatus>UNKNOWN</overriddenstatus>",
        "<dataCenterInfo class=\"com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo\"><name>MyOwn</name>",
        "<countryId>1</countryId>",
        "<apps__hashcode>UP_1_</apps__hashcode>",
    ] {
        assert!(xml.contains(part), "{part} in {xml}");
    }
    let mut empty = spring("FOO", "i", 2);
    empty["instance"]["metadata"] = json!({"@class": "java.util.Collections$EmptyMap"});
    post(to, "FOO", &empty).await;
    let xml = ask(to, "GET", "/eureka/apps/FOO/i", &[], "").await.text();
    assert!(
        xml.contains("<metadata class=\"java.util.Collections$EmptyMap\"/>"),
        "{xml}"
    );
    let json = one(to, "FOO", "i").await;
    assert_eq!(
        json["metadata"],
        json!({"@class": "java.util.Collections$EmptyMap"})
    );
}

#[tokio::test]
async fn e17_xml_is_read_as_java_writes_it() {
    let (_server, to) = serving().await;
    let body = "<?xml version=\"1.0\"?><instance><instanceId>i</instanceId><hostName>h</hostName>\
        <app>FOO</app><ipAddr>10.0.0.1</ipAddr><status>UP</status>\
        <overriddenstatus>UNKNOWN</overriddenstatus><port enabled=\"true\">80</port>\
        <securePort enabled=\"false\">443</securePort><countryId>1</countryId>\
        <dataCenterInfo class=\"com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo\">\
        <name>MyOwn</name></dataCenterInfo><metadata><a__b>&lt;&#65;&gt;</a__b></metadata>\
        <lastDirtyTimestamp>7</lastDirtyTimestamp></instance>";
    let headers = [("content-type", "application/xml")];
    let answer = ask(to, "POST", "/eureka/apps/FOO", &headers, body).await;
    assert_eq!(answer.status, 204, "{}", answer.text());
    let found = one(to, "FOO", "i").await;
    assert_eq!(found["metadata"], json!({"a_b": "<A>"}));
    assert_eq!(
        (&found["port"]["$"], &found["lastDirtyTimestamp"]),
        (&json!(80), &json!("7"))
    );
    for bad in [
        "<!DOCTYPE x [<!ENTITY a \"b\">]><instance><app>&a;</app></instance>",
        "<instance><app>&a;</app></instance>",
        "<instance><app></instance>",
        &"<a>".repeat(100_000 / 3),
    ] {
        let answer = ask(to, "POST", "/eureka/apps/FOO", &headers, bad.to_owned()).await;
        assert!([400, 413].contains(&answer.status), "{}", &bad[..40]);
    }
}

#[tokio::test]
async fn e18_metadata_is_merged_and_shows_in_the_delta() {
    let (_server, to) = serving().await;
    let mut body = spring("FOO", "i", 1);
    body["instance"]["metadata"] = json!({"n": 1, "b": true, "o": {"x": [1]}, "z": null, "s": "t"});
    post(to, "FOO", &body).await;
    let path = "/eureka/apps/FOO/i/metadata";
    let answer = put(to, &format!("{path}?s=u+v&k=%26%3D")).await;
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    let want = json!({"n": "1", "b": "true", "o": "{\"x\":[1]}", "s": "u v", "k": "&="});
    assert_eq!(one(to, "FOO", "i").await["metadata"], want);
    let delta = fetch(to, "/eureka/apps/delta").await;
    assert_eq!(delta["application"][0]["instance"][0]["metadata"], want);
    assert_eq!(put(to, "/eureka/apps/FOO/x/metadata?k=v").await.status, 404);
    let much = format!("{path}?k={}", "x".repeat(5000));
    assert_eq!(put(to, &much).await.status, 400);
}

#[tokio::test]
async fn e19_paths_as_they_are_found_in_the_wild() {
    let (_server, to) = serving().await;
    register(to, "FOO", "h:foo:1", 1).await;
    for path in [
        "/eureka/apps",
        "/eureka/apps/",
        "//eureka//apps/",
        "/eureka//apps",
        "/eureka/v2/apps/",
        "/v2/apps",
        "//v2/apps/",
        "/eureka/apps?regions=us-east-1",
    ] {
        assert_eq!(of(&fetch(to, path).await, "status").len(), 1, "{path}");
    }
    for path in [
        "/eureka/apps/foo/h%3Afoo%3A1",
        "/eureka/apps/Foo/h:foo:1/",
        "/v2/apps/FOO/h:foo:1",
    ] {
        assert_eq!(get(to, path).await.status, 200, "{path}");
    }
    for (method, path, status) in [
        ("GET", "/eureka", 404),
        ("GET", "/eureka/nothing", 404),
        ("GET", "//nothing", 404),
        ("GET", "/eureka/apps/%ff", 404),
        ("PATCH", "/eureka/apps", 405),
        ("POST", "/eureka/apps", 404),
        ("HEAD", "/eureka/apps", 200),
    ] {
        assert_eq!(
            ask(to, method, path, &[JSON], "").await.status,
            status,
            "{method} {path}"
        );
    }
    let status = get(to, "/eureka/status").await.json();
    assert!(status["generalStats"].is_object() && status["applicationStats"].is_object());
}
