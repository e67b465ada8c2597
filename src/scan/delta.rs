//! Runs of numbers in Parquet's encoding DELTA_BINARY_PACKED: where one ends, and what its numbers add up to.

/// The sum of a run's numbers and what follows it; `None` unless the run is whole, has `most` numbers at most and,
/// where `sum` asks for their sum, each is the length of something. Without `sum` it is 0, and the numbers are not
/// looked at.
pub(super) fn run(bytes: &[u8], most: u64, sum: bool) -> Option<(u64, &[u8])> {
    let mut rest = bytes;
    let [block, parts, count] = [varint(&mut rest)?, varint(&mut rest)?, varint(&mut rest)?];
    let first = zigzag(varint(&mut rest)?);
    // The encoding's rules; writers use blocks of 128 or 256.
    if count > most || parts == 0 || block > 1 << 16 || !block.is_multiple_of(parts) {
        return None;
    }
    let part = block / parts;
    if part == 0 || !part.is_multiple_of(32) {
        return None;
    }
    let mut lengths = Lengths {
        last: first as i32,
        sum: 0,
    };
    if sum && count > 0 {
        lengths.sum = u64::try_from(lengths.last).ok()?;
    }
    let mut left = count.saturating_sub(1);
    while left > 0 {
        let least = zigzag(varint(&mut rest)?) as i32;
        for width in rest.split_off(..parts as usize)? {
            // Parts without numbers have no bytes, whatever their width.
            if left == 0 {
                break;
            }
            let packed = rest.split_off(..(part / 8) as usize * usize::from(*width))?;
            let here = left.min(part);
            if sum {
                lengths.add(packed, u32::from(*width), least, here)?;
            }
            left -= here;
        }
    }
    Some((lengths.sum, rest))
}

struct Lengths {
    last: i32,
    sum: u64,
}

impl Lengths {
    /// Adds the next `count` numbers, each `least` and so many packed bits more than the one before.
    fn add(&mut self, packed: &[u8], width: u32, least: i32, count: u64) -> Option<()> {
        if width > 32 {
            return None;
        }
        let mask = (1_u64 << width) - 1;
        let mut signs = 0;
        for bit in (0..count).map(|number| number * u64::from(width)) {
            let bytes = packed.get((bit / 8) as usize..)?;
            let word = match bytes.first_chunk() {
                Some(word) => u64::from_le_bytes(*word),
                None => bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
            };
            let more = (word >> (bit % 8) & mask) as i32;
            self.last = self.last.wrapping_add(least).wrapping_add(more);
            self.sum += u64::from(self.last.cast_unsigned());
            signs |= self.last;
        }
        (signs >= 0).then_some(())
    }
}

fn zigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.split_off_first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
