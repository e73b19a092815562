//! The two text formats of metrics, and which of them a client gets.

use std::collections::HashMap;

/// A form of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextFormat {
    /// [OpenMetrics 1.0](https://prometheus.io/docs/specs/om/open_metrics_spec/).
    OpenMetrics,
    /// Prometheus's text, version 0.0.4, which older programs read.
    Prometheus,
}

/// The media type of OpenMetrics.
const OPEN_METRICS: &str = "application/openmetrics-text";

impl TextFormat {
    /// The form for a client with these values of `Accept` (RFC 9110 section 12.5.1): OpenMetrics where it
    /// names that, and does not rather have plain text.
    pub fn accepted<'a>(accept: impl IntoIterator<Item = &'a str>) -> Self {
        let (mut open, mut plain) = (0.0_f32, 0.0_f32);
        for range in accept.into_iter().flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok());
            let weight: f32 = weight.unwrap_or(1.0);
            match &*kind {
                OPEN_METRICS => open = open.max(weight),
                "text/plain" => plain = plain.max(weight),
                _ => {}
            }
        }
        if open > 0.0 && open >= plain { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// The value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// This form of what is written as OpenMetrics.
    pub(super) fn of(self, open: String) -> String {
        match self {
            Self::OpenMetrics => open,
            Self::Prometheus => prometheus(&open),
        }
    }
}

/// OpenMetrics as Prometheus's text: there a counter has the name of its series, and units and the end have no
/// line.
fn prometheus(open: &str) -> String {
    let types = open.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let types: HashMap<&str, &str> = types.collect();
    let mut text = String::with_capacity(open.len());
    for line in open.lines() {
        let about = line.strip_prefix("# ").and_then(|about| about.split_once(' '));
        match about {
            Some((what @ ("HELP" | "TYPE"), rest)) => {
                let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                let total = if types.get(name) == Some(&"counter") { "_total" } else { "" };
                text.push_str(&format!("# {what} {name}{total} {rest}\n"));
            }
            _ if line.starts_with('#') => {}
            _ => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_what_it_asks_for() {
        use TextFormat::{OpenMetrics, Prometheus};
        let scrape = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;\
                      version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, expected) in [
            (&[][..], Prometheus),
            (&["*/*"], Prometheus),
            (&["text/html,application/xhtml+xml,*/*;q=0.8"], Prometheus),
            (&[scrape], OpenMetrics),
            (&["application/openmetrics-text"], OpenMetrics),
            (&["text/plain", "Application/OpenMetrics-Text; version=1.0.0"], OpenMetrics),
            (&["text/plain;version=0.0.4;q=1, application/openmetrics-text; q=0.9"], Prometheus),
            (&["application/openmetrics-text;q=0"], Prometheus),
            (&["application/openmetrics-text;q=x"], OpenMetrics),
        ] {
            assert_eq!(TextFormat::accepted(accept.iter().copied()), expected, "{accept:?}");
        }
    }

    #[test]
    fn prometheus_text_names_counters_by_their_series() {
        let open = "# HELP a_seconds A # b.\n# TYPE a_seconds histogram\n# UNIT a_seconds seconds\n\
                    a_seconds_sum 0.0\n# HELP b Two.\n# TYPE b counter\nb_total{x=\"# TYPE\"} 1\n# EOF\n";
        let expected = "# HELP a_seconds A # b.\n# TYPE a_seconds histogram\na_seconds_sum 0.0\n\
                        # HELP b_total Two.\n# TYPE b_total counter\nb_total{x=\"# TYPE\"} 1\n";
        assert_eq!(TextFormat::Prometheus.of(open.to_owned()), expected);
        assert_eq!(TextFormat::OpenMetrics.of(open.to_owned()), open);
    }
}
