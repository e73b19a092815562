//! `docs/api.yaml` as JSON, and what it says of paths and schemas.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

const DOCUMENT: &str = include_str!("../../../docs/api.yaml");

/// A path, a method, and the status of an answer.
pub(super) type Documented = BTreeSet<(String, String, u16)>;

/// The document.
pub(super) struct OpenApi(Value);

impl OpenApi {
    pub(super) fn read() -> Self {
        let is_text = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with('#');
        let lines: Vec<_> = DOCUMENT.lines().filter(is_text).collect();
        let mut rest = &lines[..];
        let read = Self(block(&mut rest, 0));
        assert!(rest.is_empty(), "{rest:?}");
        read
    }

    /// All answers.
    pub(super) fn answers(&self) -> Documented {
        let mut found = BTreeSet::new();
        for (path, method) in self.operations() {
            let responses = &self.0["paths"][&path][method.to_lowercase()]["responses"];
            for status in responses.as_object().unwrap().keys() {
                found.insert((path.clone(), method.clone(), status.parse().unwrap()));
            }
        }
        found
    }

    /// All paths with their methods.
    pub(super) fn operations(&self) -> Vec<(String, String)> {
        let paths = self.0["paths"].as_object().unwrap().iter();
        let of = |(path, methods): (&String, &Value)| -> Vec<(String, String)> {
            let methods = methods.as_object().unwrap().keys();
            methods.map(|method| (path.clone(), method.to_uppercase())).collect()
        };
        paths.flat_map(of).collect()
    }

    /// What a `$ref` leads to; each must lead somewhere.
    pub(super) fn follow(&self, reference: &str) -> &Value {
        let found = self.0.pointer(reference.strip_prefix('#').unwrap());
        found.unwrap_or_else(|| panic!("{reference} leads nowhere"))
    }

    /// All `$ref`s.
    pub(super) fn references(&self) -> BTreeSet<String> {
        fn collect(value: &Value, found: &mut BTreeSet<String>) {
            match value {
                Value::Object(map) => {
                    found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                    map.values().for_each(|value| collect(value, found));
                }
                Value::Array(all) => all.iter().for_each(|value| collect(value, found)),
                _ => {}
            }
        }
        let mut found = BTreeSet::new();
        collect(&self.0, &mut found);
        found
    }

    /// The schema of each transport that a client can subscribe to, by its name.
    pub(super) fn transports(&self) -> BTreeMap<String, &Value> {
        let new = self.follow("#/components/schemas/NewSubscription");
        let all = new["oneOf"].as_array().unwrap().iter();
        let schemas = all.map(|one| self.follow(one["$ref"].as_str().unwrap()));
        let named = |schema: &Value| schema["properties"]["transport"]["const"].clone();
        schemas.map(|schema| (named(schema).as_str().unwrap().to_owned(), schema)).collect()
    }

    /// The keys of an object of this schema: those that it needs, and the others.
    pub(super) fn keys(schema: &Value) -> (Vec<&str>, Vec<&str>) {
        let needed = schema["required"].as_array().unwrap().iter();
        let needed: Vec<_> = needed.map(|key| key.as_str().unwrap()).collect();
        let all = schema["properties"].as_object().unwrap().keys().map(String::as_str);
        let others = all.filter(|key| !needed.contains(key)).collect();
        (needed, others)
    }
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Takes the lines that are indented by this much, or deeper: the part of YAML in which the document is written.
fn block(rest: &mut &[&str], indent: usize) -> Value {
    let mut map = Map::new();
    let mut list = Vec::new();
    while let Some((line, after)) = rest.split_first() {
        if indentation(line) < indent {
            break;
        }
        assert_eq!(indentation(line), indent, "{line}");
        let text = line.trim();
        if let Some(entry) = text.strip_prefix("- ") {
            let is_map = entry.contains(": ") || entry.ends_with(':');
            if !is_map || entry.starts_with('{') {
                *rest = after;
                list.push(scalar(entry));
                continue;
            }
            // The same without the dash, which belongs to the map behind it.
            let first = format!("{}{entry}", " ".repeat(indent + 2));
            let end = after.iter().position(|line| indentation(line) < indent + 2);
            let (own, others) = after.split_at(end.unwrap_or(after.len()));
            let lines: Vec<&str> = [&[&*first], own].concat();
            list.push(block(&mut &lines[..], indent + 2));
            *rest = others;
            continue;
        }
        *rest = after;
        let (key, value) = text.split_once(':').unwrap_or_else(|| panic!("{line}"));
        let value = match value.trim() {
            "" => {
                let deeper = rest.first().map_or(0, |line| indentation(line));
                block(rest, deeper)
            }
            ">-" => {
                let end = rest.iter().position(|line| indentation(line) <= indent);
                let (text, others) = rest.split_at(end.unwrap_or(rest.len()));
                *rest = others;
                let words: Vec<_> = text.iter().map(|line| line.trim()).collect();
                Value::String(words.join(" "))
            }
            value => scalar(value),
        };
        let key = key.trim_matches('"').to_owned();
        assert!(map.insert(key, value).is_none(), "twice: {line}");
    }
    if list.is_empty() { Value::Object(map) } else { Value::Array(list) }
}

/// A value on one line.
fn scalar(text: &str) -> Value {
    if let Some(list) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        return Value::Array(entries.map(scalar).collect());
    }
    if let Some(quoted) = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        return Value::String(quoted.to_owned());
    }
    match text {
        "{}" => Value::Object(Map::new()),
        "null" => Value::Null,
        "true" | "false" => Value::Bool(text == "true"),
        _ => text.parse::<u64>().map_or_else(|_| Value::String(text.to_owned()), Value::from),
    }
}
