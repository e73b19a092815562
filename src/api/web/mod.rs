//! The web app: its files, which are part of the program, and how browsers may use them.
//!
//! A user logs in, chooses mailboxes, and has this browser notified; `docs/web-app.md` describes it. Each file
//! comes with an `ETag` of its content, and browsers ask each time whether it is still that one, so that a
//! new mailchime is a new page. The pages come in the browser's language. The policy allows what this server itself
//! has and nothing else, no script or style within the page, and scripts by Trusted Types only.

mod pages;

use aws_lc_rs::digest::{SHA256, digest};
use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue,
    IF_NONE_MATCH, REFERRER_POLICY,
};
use serde_json::json;

use self::pages::LANGUAGES;
use crate::model::hex;

/// What a page of this server may load and do (Content Security Policy Level 3, Trusted Types).
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; manifest-src 'self'; worker-src 'self'; frame-ancestors 'none'; \
                      base-uri 'none'; form-action 'self'; require-trusted-types-for 'script'; \
                      trusted-types mailchime";

/// What else goes for each file; `nosniff` is for all answers of the API.
const HEADERS: [(HeaderName, &str); 5] = [
    (CONTENT_SECURITY_POLICY, POLICY),
    (CACHE_CONTROL, "no-cache"),
    (REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

const SCRIPT: &str = "text/javascript; charset=utf-8";
const JSON: &str = "application/json";
const PNG: &str = "image/png";

/// The files that are the same for all: under which path, of what type, and the content.
#[rustfmt::skip] // a table: one file, one line
const FILES: [(&str, &str, &[u8]); 11] = [
    ("/app.js", SCRIPT, include_bytes!("assets/app.js")),
    ("/shared.js", SCRIPT, include_bytes!("assets/shared.js")),
    ("/sw.js", SCRIPT, include_bytes!("assets/sw.js")),
    ("/style.css", "text/css; charset=utf-8", include_bytes!("assets/style.css")),
    ("/manifest.webmanifest", "application/manifest+json", include_bytes!("assets/manifest.webmanifest")),
    ("/icon.svg", "image/svg+xml", include_bytes!("assets/icon.svg")),
    ("/icon-192.png", PNG, include_bytes!("assets/icon-192.png")),
    ("/icon-512.png", PNG, include_bytes!("assets/icon-512.png")),
    ("/maskable-512.png", PNG, include_bytes!("assets/maskable-512.png")),
    ("/apple-touch-icon.png", PNG, include_bytes!("assets/apple-touch-icon.png")),
    ("/badge.png", PNG, include_bytes!("assets/badge.png")),
];

/// A file as it is served.
#[derive(Clone, Debug)]
struct Asset {
    content_type: &'static str,
    content: Bytes,
    /// A strong entity tag (RFC 9110 section 8.8.3).
    etag: HeaderValue,
}

/// All files and pages, and `/settings.json`, which says where a tap on a notification leads.
pub(super) fn routes<S: Clone + Send + Sync + 'static>(mail_url: Option<&str>) -> Router<S> {
    let settings = json!({ "mail_url": mail_url }).to_string();
    let settings = ("/settings.json".to_owned(), JSON, Bytes::from(settings));
    let texts = LANGUAGES.into_iter().map(|(language, texts)| {
        (format!("/texts/{language}.json"), JSON, Bytes::from_static(texts.as_bytes()))
    });
    let files = FILES.into_iter();
    let files = files.map(|(path, kind, content)| (path.to_owned(), kind, content.into()));
    files.chain(texts).chain([settings]).fold(
        pages::routes(),
        |router, (path, content_type, content)| {
            let asset = Asset::new(content_type, content);
            router.route(&path, get(async move |headers: HeaderMap| asset.answer(&headers)))
        },
    )
}

impl Asset {
    fn new(content_type: &'static str, content: Bytes) -> Self {
        let hash = hex(&digest(&SHA256, &content).as_ref()[..16]);
        let etag = HeaderValue::from_str(&format!("\"{hash}\""));
        Self { content_type, content, etag: etag.unwrap_or(HeaderValue::from_static("\"\"")) }
    }

    /// The file, or that the browser's copy is still the same.
    fn answer(&self, request: &HeaderMap) -> Response {
        let mut response = if self.is_known(request) {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            let mut response = Response::new(Body::from(self.content.clone()));
            let content_type = HeaderValue::from_static(self.content_type);
            response.headers_mut().insert(CONTENT_TYPE, content_type);
            response
        };
        let headers = response.headers_mut();
        headers.insert(ETAG, self.etag.clone());
        for (name, value) in HEADERS {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }

    /// Whether `If-None-Match` names this content (RFC 9110 section 13.1.2: by weak comparison).
    fn is_known(&self, request: &HeaderMap) -> bool {
        let fields = request.get_all(IF_NONE_MATCH).iter().filter_map(|it| it.to_str().ok());
        let mut tags = fields.flat_map(|field| field.split(',')).map(str::trim);
        tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == self.etag)
    }
}
