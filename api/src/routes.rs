//! What each path answers.

use std::time::Duration;

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
};
use serde_json::json;

use crate::burn::{self, Burner, Refusal};

/// The answers of one host.
#[derive(Clone)]
pub struct Api {
    host: String,
    hello: Bytes,
    burner: Burner,
}

impl Api {
    /// Returns an API that calls itself `host`.
    pub fn new(host: &str) -> Self {
        let hello = json!({ "host": host, "message": "Hello" }).to_string();
        Self { host: host.to_owned(), hello: Bytes::from(hello), burner: Burner::new() }
    }

    /// Answers one request. A HEAD is answered as a GET; hyper leaves the body out.
    pub async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if !matches!(path, "/" | "/healthz" | "/burn") {
            return error(StatusCode::NOT_FOUND, &format!("nothing is at {path}: try /, /healthz or /burn?ms=200"));
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = error(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered here");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }

        match path {
            "/" => reply(StatusCode::OK, "application/json", self.hello.clone()),
            "/healthz" => reply(StatusCode::OK, "text/plain", Bytes::from_static(b"ok")),
            _burn => self.burn(request.uri().query()).await,
        }
    }

    async fn burn(&self, query: Option<&str>) -> Response<Full<Bytes>> {
        let Some(ms) = query.and_then(burn_ms) else {
            let bounds = format!("ms must be a whole number from 1 to {}, as in /burn?ms=200", burn::LONGEST_MS);
            return error(StatusCode::BAD_REQUEST, &bounds);
        };
        match self.burner.burn(Duration::from_millis(ms)).await {
            Ok(()) => json_reply(StatusCode::OK, &json!({ "host": self.host, "burned_ms": ms })),
            Err(Refusal::Busy) => error(StatusCode::SERVICE_UNAVAILABLE, "too many burns at once: try again later"),
            Err(Refusal::Broken(cause)) => error(StatusCode::INTERNAL_SERVER_ERROR, &format!("{cause:#}")),
        }
    }
}

fn burn_ms(query: &str) -> Option<u64> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix("ms="))?;
    value.parse().ok().filter(|ms| (1..=burn::LONGEST_MS).contains(ms))
}

fn error(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    json_reply(status, &json!({ "error": message }))
}

fn json_reply(status: StatusCode, body: &serde_json::Value) -> Response<Full<Bytes>> {
    reply(status, "application/json", Bytes::from(body.to_string()))
}

fn reply(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burn_is_bounded() {
        assert_eq!(burn_ms("ms=1"), Some(1));
        assert_eq!(burn_ms("a=b&ms=10000"), Some(10_000));
        for query in ["", "ms=", "ms=0", "ms=10001", "ms=-1", "ms=1.5", "ms=1s", "s=1"] {
            assert_eq!(burn_ms(query), None, "{query}");
        }
    }
}
