use super::*;

fn read(text: &str) -> Result<Config, String> {
    parse(Path::new("gateway.toml"), text.to_owned()).map_err(|error| error.to_string())
}

const GOOD: &str = r#"
[listeners.http]
bind = "127.0.0.1:0"
limits = { headers = "16KiB", connections = 5 }
trusted_proxies = ["10.0.0.0/8"]
[registry]
servers = ["http://127.0.0.1:7900"]
[services.orders]
policy = "std"
[services.legacy]
endpoints = ["127.0.0.1:9000", { addr = "127.0.0.1:9001", weight = 2 }]
[policies.std]
timeouts = { request = "3s" }
retry = { attempts = 2 }
[[routes]]
name = "orders"
hosts = ["api.example.com"]
path = "/v1/orders"
methods = ["GET", "POST"]
rewrite = { prefix = "/orders" }
timeouts = { request = "1s" }
to = "orders"
[[routes]]
name = "rest"
to = "legacy"
[process]
workers = 2
"#;

#[test]
fn a_good_file_is_used_as_written() {
    let config = read(GOOD).expect("good");
    assert_eq!(config.listeners[0].limits.connections, 5);
    assert_eq!(config.listeners[0].limits.per_source, 1_000);
    assert_eq!(config.process.workers, 2);
    let route = &config.routes[0];
    assert_eq!(route.place, "gateway.toml:15");
    assert_eq!(route.timeout, Some(Duration::from_secs(1)));
    let orders = &config.services[route.service];
    assert_eq!(orders.name.as_str(), "orders");
    assert!(orders.endpoints.is_none() && orders.policy.retry.is_some());
    let legacy = &config.services[config.routes[1].service];
    let weights: Vec<_> = legacy
        .endpoints
        .iter()
        .flatten()
        .map(|e| e.weight)
        .collect();
    assert_eq!(weights, [1, 2]);
}

#[test]
fn bad_files_are_refused_where_they_are_wrong() {
    // What is replaced in the good file, by what; the line, and words of the message.
    let cases: [(&str, &str, &str, &[&str]); 20] = [
        (
            "policy = \"std\"",
            "polcy = \"std\"",
            ":9:1",
            &["unknown field `polcy`", "did you mean `policy`"],
        ),
        (
            "policy = \"std\"",
            "policy = \"sdt\"",
            ":9:",
            &["unknown policy `sdt`", "`std`", "expected one of"],
        ),
        (
            "to = \"orders\"",
            "to = \"order\"",
            ":22:",
            &[
                "unknown service `order`",
                "`legacy`",
                "did you mean `orders`",
            ],
        ),
        (
            "request = \"3s\"",
            "request = \"3\"",
            ":13:",
            &["\"250ms\""],
        ),
        ("attempts = 2", "attempts = 99", ":14:", &["attempts"]),
        (
            "path = \"/v1/orders\"",
            "path = \"v1\"",
            ":18:",
            &["\"/prefix\" or \"=/exact\""],
        ),
        (
            "path = \"/v1/orders\"",
            "path = \"=/v1\"",
            ":20:",
            &["no prefix to rewrite"],
        ),
        ("\"GET\", ", "\"get\", ", ":19:", &["did you mean \"GET\""]),
        (
            "api.example.com",
            "api.example.com:80",
            ":17:",
            &["without its port"],
        ),
        (
            "name = \"rest\"",
            "name = \"orders\"",
            ":24:",
            &["already at gateway.toml:15"],
        ),
        ("10.0.0.0/8", "10.0.0.0/99", ":5:", &["is not a network"]),
        ("workers = 2", "workers = 33", ":27:", &["1 to 32"]),
        (
            "connections = 5",
            "connections = 0",
            ":4:",
            &["limits.connections", "more than 0"],
        ),
        (
            "headers = \"16KiB\"",
            "headers = \"1KiB\"",
            ":4:",
            &["8KiB"],
        ),
        (
            "weight = 2",
            "weight = 0",
            ":11:",
            &["weight of at least 1"],
        ),
        (
            "127.0.0.1:9001",
            "127.0.0.1:9000",
            ":11:",
            &["listed twice"],
        ),
        (
            "http://127.0.0.1:7900",
            "127.0.0.1:7900",
            ":7:",
            &["is not a registry"],
        ),
        (
            "[registry]\nservers = [\"http://127.0.0.1:7900\"]\n",
            "",
            ":6:",
            &["no [registry] to ask"],
        ),
        (
            "name = \"rest\"",
            "name = \"again\"\nhosts = [\"api.example.com\"]\npath = \"/v1/orders\"\nmethods = [\"POST\", \"GET\"]",
            ":23:",
            &["matches the same requests", "\"orders\"", "gateway.toml:15"],
        ),
        (
            "bind = \"127.0.0.1:0\"",
            "bind = \"localhost\"",
            ":3:",
            &["socket address"],
        ),
    ];
    for (from, to, line, words) in cases {
        assert!(GOOD.contains(from), "{from}");
        let error = read(&GOOD.replacen(from, to, 1)).expect_err(to);
        assert!(
            error.contains(&format!("gateway.toml{line}")),
            "{to}: {line}: {error}"
        );
        for word in words {
            assert!(error.contains(word), "{to}: wants {word:?} in: {error}");
        }
    }
}

#[test]
fn the_quick_form_is_a_file_too() {
    let bind = "127.0.0.1:8080".parse().expect("addr");
    let routes = [
        "/=http://127.0.0.1:9000".to_owned(),
        "api.test/v1=http://127.0.0.1:9001,127.0.0.1:9002/".to_owned(),
        "=/only=http://127.0.0.1:9003".to_owned(),
    ];
    let text = quick(bind, &routes).expect("fine");
    let config = read(&text).expect("fine");
    let find = |host, path| {
        let headers = http::HeaderMap::new();
        config
            .table
            .find(host, path, None, &http::Method::GET, &headers)
    };
    assert_eq!(find("x", "/"), Some(0));
    assert_eq!(find("api.test", "/v1/x"), Some(1));
    assert_eq!(find("x", "/only"), Some(2));
    for bad in [
        "/",
        "/=https://a:1",
        "x=http://127.0.0.1:1",
        "/=http://localhost:1",
    ] {
        let error = quick(bind, &[bad.to_owned()]).expect_err(bad);
        assert!(error.contains("expected"), "{error}");
    }
}

#[test]
fn a_prefix_is_replaced_as_gateway_api_says() {
    // F3
    for (from, to, path, want) in [
        ("/prefix/one", "/one", "/prefix/one/two", "/one/two"),
        ("/strip", "/", "/strip/three", "/three"),
        ("/strip", "/", "/strip", "/"),
        ("/strip", "/", "/strip/", "/"),
        ("/", "/base", "/x", "/base/x"),
        ("/", "/base", "/", "/base/"),
    ] {
        let text = format!(
            "[listeners.http]\nbind = \"127.0.0.1:0\"\n[services.a]\nendpoints = [\"127.0.0.1:1\"]\n\
             [[routes]]\nname = \"r\"\npath = \"{from}\"\nrewrite = {{ prefix = \"{to}\" }}\nto = \"a\"\n"
        );
        let config = read(&text).expect("good");
        let rewrite = config.routes[0].rewrite.as_ref().expect("there");
        assert_eq!(rewrite.apply(path), want, "{from} → {to}: {path}");
    }
}
