//! Bytes that a session has read and not dealt with.

/// Bytes in their order, taken from the front as they are dealt with. What it costs is linear in the
/// bytes, in however small parts they come and go; empty it holds no memory.
#[derive(Debug, Default)]
pub(super) struct ReadBuffer {
    bytes: Vec<u8>,
    /// How many of `bytes` are dealt with.
    from: usize,
}

impl ReadBuffer {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.from..]
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.from
    }

    /// Memory that is held, in bytes.
    pub(super) fn held(&self) -> usize {
        self.bytes.capacity()
    }

    pub(super) fn append(&mut self, bytes: &[u8]) {
        // No more is moved than was dealt with since the last time.
        if self.from > self.len() {
            self.bytes.drain(..self.from);
            self.from = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The first `length` bytes are dealt with.
    pub(super) fn take(&mut self, length: usize) {
        self.from += length;
        if self.from >= self.bytes.len() {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let (mut kept, mut taken) = (ReadBuffer::default(), Vec::new());
        for round in 0..100_u8 {
            kept.append(&[round; 7]);
            let part = kept.len().min(usize::from(round % 12));
            taken.extend_from_slice(&kept.as_slice()[..part]);
            kept.take(part);
        }
        taken.extend_from_slice(kept.as_slice());
        kept.take(kept.len());
        let all: Vec<u8> = (0..100).flat_map(|round| [round; 7]).collect();
        assert!(taken == all && kept.is_empty() && kept.held() == 0);
    }

    #[test]
    fn what_is_taken_and_added_byte_by_byte_is_not_moved_each_time() {
        let mut kept = ReadBuffer::default();
        kept.append(&[0; 64 * 1024]);
        let mut moved = 0;
        for _ in 0..64 * 1024 {
            kept.take(1);
            if kept.from > kept.len() {
                moved += kept.len();
            }
            kept.append(&[0]);
        }
        assert!(moved <= 64 * 1024, "{moved}");
        assert!(kept.held() <= 256 * 1024, "{}", kept.held());
    }
}
