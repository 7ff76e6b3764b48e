//! A gateway from the command line alone: `--route '/=http://127.0.0.1:9000'`.

use std::{fmt::Write as _, net::SocketAddr};

/// The file that `routes` would be, so that one way leads from text to configuration.
///
/// Each route is `[host]/path=http://addr:port[,addr:port…]`.
///
/// # Errors
/// A message naming the route and the form that is expected.
pub fn quick(bind: SocketAddr, routes: &[String]) -> Result<String, String> {
    let mut text = format!("[listeners.http]\nbind = \"{bind}\"\n");
    for (n, route) in routes.iter().enumerate() {
        let expected = || {
            format!(
                "route {route:?}: expected 'HOST/PATH=http://ADDR:PORT', as '/=http://127.0.0.1:9000'"
            )
        };
        let (from, to) = route.rsplit_once("=http://").ok_or_else(expected)?;
        let slash = from.find('/').ok_or_else(expected)?;
        let (host, path) = from.split_at(slash);
        // `=/x` asks for that path alone; a host before it keeps the sign.
        let (host, exact) = match host.strip_suffix('=') {
            Some(host) => (host, "="),
            None => (host, ""),
        };
        let endpoints = to
            .trim_end_matches('/')
            .split(',')
            .map(str::parse::<SocketAddr>)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| format!("{}: {error}", expected()))?;
        let endpoints: Vec<String> = endpoints.iter().map(|addr| format!("\"{addr}\"")).collect();
        let hosts = if host.is_empty() {
            String::new()
        } else {
            format!("hosts = [{}]\n", quoted(host))
        };
        let path = quoted(&format!("{exact}{path}"));
        let written = write!(
            text,
            "[services.route-{n}]\nendpoints = [{}]\n[[routes]]\nname = \"route-{n}\"\n{hosts}path = {path}\nto = \"route-{n}\"\n",
            endpoints.join(", "),
        );
        written.map_err(|_| expected())?;
    }
    Ok(text)
}

/// As a TOML string.
fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{escaped}\"")
}
