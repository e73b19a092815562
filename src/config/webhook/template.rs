//! A text of the operator's for services that do not read our JSON: a phone's notification, a chat.

use std::borrow::Cow;

use serde_json::Value;

/// A text, or a JSON value with texts, in which names in braces stand for what has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyTemplate(TemplateForm);

#[derive(Clone, Debug, PartialEq, Eq)]
enum TemplateForm {
    Text(String),
    Json(Value),
}

/// What the names in braces stand for, in this order.
pub type TemplateValues<'a> = [Cow<'a, str>; NAMES.len()];

/// The names that may stand in braces.
const NAMES: [&str; 5] = ["account", "mailbox", "kind", "messages", "unseen"];

impl BodyTemplate {
    /// A text that begins with `{"` or `[` is JSON, and each text in it is filled in by itself.
    ///
    /// # Errors
    /// A clause for people: what is wrong and what is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        let json = text.trim_start();
        let form = if json.starts_with('[') || json.strip_prefix('{').is_some_and(begins_object) {
            let parsed = serde_json::from_str(text);
            TemplateForm::Json(
                parsed.map_err(|error| format!("is no JSON, though it begins so: {error}"))?,
            )
        } else {
            TemplateForm::Text(text.to_owned())
        };
        let mut unknown = None;
        each_text(&form, &mut |text| unknown = unknown.take().or_else(|| unknown_name(text)));
        match unknown {
            Some(name) => {
                Err(format!("has {{{name}}}; names in braces are {{{}}}", NAMES.join("}, {")))
            }
            None => Ok(Self(form)),
        }
    }

    /// The `content-type` of the body.
    pub fn content_type(&self) -> &'static str {
        match self.0 {
            TemplateForm::Text(_) => "text/plain; charset=utf-8",
            TemplateForm::Json(_) => "application/json",
        }
    }

    /// The body.
    pub fn fill(&self, values: &TemplateValues<'_>) -> String {
        match &self.0 {
            TemplateForm::Text(text) => filled(text, values),
            TemplateForm::Json(json) => filled_json(json, values).to_string(),
        }
    }
}

fn begins_object(rest: &str) -> bool {
    rest.trim_start().starts_with(['"', '}'])
}

fn each_text(form: &TemplateForm, see: &mut dyn FnMut(&str)) {
    fn json(value: &Value, see: &mut dyn FnMut(&str)) {
        match value {
            Value::String(text) => see(text),
            Value::Array(values) => values.iter().for_each(|value| json(value, see)),
            Value::Object(values) => values.values().for_each(|value| json(value, see)),
            _ => {}
        }
    }
    match form {
        TemplateForm::Text(text) => see(text),
        TemplateForm::Json(value) => json(value, see),
    }
}

/// A word in braces that is none of [`NAMES`].
fn unknown_name(text: &str) -> Option<String> {
    let mut rest = text;
    while let Some((_, behind)) = rest.split_once('{') {
        let (name, _) = behind.split_once('}')?;
        let is_word = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        if is_word && !NAMES.contains(&name) {
            return Some(name.to_owned());
        }
        rest = behind;
    }
    None
}

/// The names are looked for in the text of the operator alone, never in what stands for one.
fn filled(text: &str, values: &TemplateValues<'_>) -> String {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('{') {
        filled.push_str(before);
        let named = behind.split_once('}').and_then(|(name, behind)| {
            let at = NAMES.iter().position(|known| *known == name)?;
            Some((&values[at], behind))
        });
        match named {
            Some((value, behind)) => {
                filled.push_str(value);
                rest = behind;
            }
            None => {
                filled.push('{');
                rest = behind;
            }
        }
    }
    filled.push_str(rest);
    filled
}

fn filled_json(value: &Value, values: &TemplateValues<'_>) -> Value {
    match value {
        Value::String(text) => Value::String(filled(text, values)),
        Value::Array(all) => all.iter().map(|value| filled_json(value, values)).collect(),
        Value::Object(all) => {
            all.iter().map(|(key, value)| (key.clone(), filled_json(value, values))).collect()
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(template: &str) -> String {
        let values = ["alice", "a {kind} \"box\"", "new", "34", "7"].map(Cow::Borrowed);
        BodyTemplate::parse(template).unwrap().fill(&values)
    }

    #[test]
    fn names_in_braces_are_filled_in_once() {
        assert_eq!(
            fill("{unseen} of {messages} unread: {mailbox} of {account} ({kind})"),
            "7 of 34 unread: a {kind} \"box\" of alice (new)"
        );
        assert_eq!(fill("no name, {}, { account }, {"), "no name, {}, { account }, {");
        assert_eq!(
            fill(r#"{"title":"{account}","n":[1,"{mailbox}"],"priority":5}"#),
            r#"{"n":[1,"a {kind} \"box\""],"priority":5,"title":"alice"}"#
        );
        let text = BodyTemplate::parse("{account}").unwrap();
        let json = BodyTemplate::parse("{ \"a\": 1 }").unwrap();
        assert_eq!(text.content_type(), "text/plain; charset=utf-8");
        assert_eq!(json.content_type(), "application/json");
    }

    #[test]
    fn what_cannot_be_filled_in_is_refused_with_what_is_allowed() {
        let refused = |template| BodyTemplate::parse(template).unwrap_err();
        let names = "{account}, {mailbox}, {kind}, {messages}, {unseen}";
        assert_eq!(
            refused("from {sender}"),
            format!("has {{sender}}; names in braces are {names}")
        );
        assert!(refused(r#"{"a":"{subject}"}"#).starts_with("has {subject}"));
        assert!(refused(r#"{"a":"#).starts_with("is no JSON"));
    }
}
