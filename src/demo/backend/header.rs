//! The fields of a message's header (RFC 5322 section 2.2).

use std::ops::Range;

/// The header with the empty line that ends it; all of the message if there is none.
pub(super) fn header_of(message: &[u8]) -> &[u8] {
    let mut start = 0;
    while let Some(at) = memchr::memchr(b'\n', &message[start..]) {
        let line = &message[start..start + at];
        start += at + 1;
        if line.is_empty() || line == b"\r" {
            return &message[..start];
        }
    }
    message
}

/// The values of each field called `name`, unfolded.
pub(super) fn header_values(header: &[u8], name: &str) -> Vec<Vec<u8>> {
    fields(header)
        .filter(|field| field_name(&header[field.clone()]).eq_ignore_ascii_case(name.as_bytes()))
        .map(|field| {
            let field = &header[field];
            let value = field.get(field_name(field).len() + 1..).unwrap_or_default();
            let unfolded = value.iter().filter(|byte| !matches!(byte, b'\r' | b'\n')).copied();
            unfolded.collect::<Vec<_>>().trim_ascii().to_vec()
        })
        .collect()
}

/// Where the fields are, each with its continuation lines.
pub(super) fn fields(header: &[u8]) -> impl Iterator<Item = Range<usize>> + use<'_> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let mut end = start;
        loop {
            end += memchr::memchr(b'\n', &header[end..]).map_or(header.len() - end, |at| at + 1);
            if !matches!(header.get(end), Some(b' ' | b'\t')) {
                break;
            }
        }
        let field = std::mem::replace(&mut start, end)..end;
        (!header[field.clone()].trim_ascii().is_empty()).then_some(field)
    })
}

pub(super) fn field_name(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == b':').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_end_at_the_empty_line() {
        assert_eq!(header_of(b"A: b\r\n\r\nbody\r\n\r\n"), b"A: b\r\n\r\n");
        assert_eq!(header_of(b"A: b\n\nbody"), b"A: b\n\n");
        assert_eq!(header_of(b"\r\nbody"), b"\r\n");
        assert_eq!(header_of(b"A: b"), b"A: b");
        assert_eq!(header_of(b""), b"");
    }
}
