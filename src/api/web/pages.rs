//! The pages of HTML, each in the languages that there are texts in.
//!
//! An element with `data-text` has the text of that key of `assets/texts/LANGUAGE.json`. It stands in the page that is
//! sent, so that it is there also for a browser without scripts or without a network.

use std::collections::BTreeMap;

use axum::Router;
use axum::routing::get;
use hyper::header::{ACCEPT_LANGUAGE, HeaderMap, HeaderValue, VARY};

use super::Asset;

/// The languages, and the texts of each as a JSON object. A reader of none of them gets the first.
pub(super) const LANGUAGES: [(&str, &str); 2] =
    [("en", include_str!("assets/texts/en.json")), ("de", include_str!("assets/texts/de.json"))];

/// The pages: under which path, and the page without its texts.
const PAGES: [(&str, &str); 2] = [
    ("/", include_str!("assets/index.html")),
    ("/offline.html", include_str!("assets/offline.html")),
];

/// What stands before the key of a text.
const MARK: &str = " data-text=\"";

/// All pages, each in the language that the browser prefers.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    PAGES.into_iter().fold(Router::new(), |router, (path, page)| {
        let pages = LANGUAGES.map(|(language, texts)| {
            let texts = serde_json::from_str(texts).unwrap_or_default();
            Asset::new("text/html; charset=utf-8", with_texts(page, language, &texts).into())
        });
        let answer = async move |headers: HeaderMap| {
            let mut response = pages[preferred(&headers)].answer(&headers);
            response.headers_mut().insert(VARY, HeaderValue::from_static("accept-language"));
            response
        };
        router.route(path, get(answer))
    })
}

/// The page in this language. A key that is not among `texts` leaves its element empty.
fn with_texts(page: &str, language: &str, texts: &BTreeMap<String, String>) -> String {
    let page = page.replacen("<html lang=\"en\">", &format!("<html lang=\"{language}\">"), 1);
    let mut parts = page.split(MARK);
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (tag, rest) = part.split_once('>').unwrap_or((part, ""));
        let key = tag.split('"').next().unwrap_or_default();
        let text = texts.get(key).map(String::as_str).unwrap_or_default();
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        whole.extend([MARK, tag, ">", &text, rest]);
    }
    whole
}

/// Which of [`LANGUAGES`] the browser prefers (RFC 9110 section 12.5.4), by the first part of each tag alone. Of those that
/// it likes as well the one that it names first.
fn preferred(request: &HeaderMap) -> usize {
    let fields = request.get_all(ACCEPT_LANGUAGE).iter().filter_map(|it| it.to_str().ok());
    let (mut best, mut highest) = (0, 0.0_f32);
    for range in fields.flat_map(|field| field.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let language = parts.next().and_then(|tag| tag.split('-').next()).unwrap_or_default();
        let known = LANGUAGES.iter().position(|(it, _)| it.eq_ignore_ascii_case(language));
        let weight = parts.find_map(|part| part.strip_prefix(['q', 'Q'])?.strip_prefix('='));
        let weight = weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0));
        if let Some(known) = known
            && weight > highest
        {
            (best, highest) = (known, weight);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_language_is_the_one_that_the_browser_likes_best() {
        for (field, language) in [
            ("", "en"),
            ("de", "de"),
            ("DE-at", "de"),
            ("fr, de-AT;q=0.8, en;q=0.5", "de"),
            ("en;q=0.5,de;q=0.9", "de"),
            ("en;q=0.5,de; Q=0.9", "de"),
            ("en, de", "en"),
            ("de;q=0", "en"),
            ("fr, *", "en"),
            ("den, d, de;q=x, ;;q=,", "en"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_LANGUAGE, HeaderValue::from_str(field).unwrap());
            assert_eq!(LANGUAGES[preferred(&headers)].0, language, "{field}");
        }
        assert_eq!(preferred(&HeaderMap::new()), 0);
    }

    #[test]
    fn a_text_is_text_and_stands_in_its_element_alone() {
        let texts = BTreeMap::from([("a".to_owned(), "1 < 2 & \"3\"".to_owned())]);
        let page = "<html lang=\"en\"><p data-text=\"a\" id=\"x\"></p><p data-text=\"b\"></p>";
        let expected = "<html lang=\"de\"><p data-text=\"a\" id=\"x\">1 &lt; 2 &amp; \"3\"</p><p data-text=\"b\"></p>";
        assert_eq!(with_texts(page, "de", &texts), expected);
    }
}
