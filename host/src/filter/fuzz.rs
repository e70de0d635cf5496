//! Fuzz target: what a module may hand back.

use super::Batch;
use super::check::{OUTPUT_BYTES_MAX, Output, Room, check, output_bytes_max, replacements};

/// The lines of the batch; every other one was joined from two.
const LINES: [&[u8]; 8] = [b"one", b"t\nwo", b"", b"fo\nur", b"five", b"\n", b"\r", b"\n8"];

/// Four bytes say how long the parts are: the batch, the room, the verdicts and the ends, which
/// come next; the rest is output. It is taken if, and only if, [`walk`] finds every line that is
/// promised.
pub fn output(input: &[u8]) {
    let Some(([lines, room, verdicts, ends], rest)) = input.split_first_chunk::<4>() else { return };
    let lines = &LINES[..usize::from(*lines) % (LINES.len() + 1)];
    let room = if *room == u8::MAX { OUTPUT_BYTES_MAX } else { usize::from(*room) * 4 };
    let (verdicts, rest) = rest.split_at(rest.len().min(usize::from(verdicts % 16)));
    let (ends, bytes) = rest.split_at(rest.len().min(usize::from(*ends)));
    let end = |end: &u8| if *end == u8::MAX { u32::MAX } else { u32::from(*end) };
    let output =
        Output { verdicts: verdicts.to_vec(), ends: ends.iter().map(end).collect(), bytes: bytes.to_vec() };
    let (mut source, mut starts, mut stops) = (Vec::new(), Vec::new(), Vec::new());
    for line in lines {
        starts.push(source.len() as u32);
        source.extend_from_slice(line);
        stops.push(source.len() as u32);
        source.push(b'\n');
    }
    let batch = Batch { path: "p", offset: 0, unix_ms: 0, bytes: &source, starts: &starts, ends: &stops };
    let room = room.min(output_bytes_max(lines.len(), source.len()));
    let fits = output.bytes.len() <= room && walk(lines, &output).is_some();
    assert_eq!(check(&batch, &output, Room { bytes: room, ..Room::WHOLE }).is_ok(), fits, "{output:?}");
}

/// Takes the output apart; `None` where something is missing, left over or out of its place.
fn walk(lines: &[&[u8]], output: &Output) -> Option<()> {
    let (mut start, mut ends, mut verdicts) = (0, output.ends.iter(), output.verdicts.iter());
    for line in lines {
        for _ in 0..replacements(*verdicts.next()?) {
            let end = *ends.next()? as usize;
            let text = output.bytes.get(start..end)?;
            if text.contains(&b'\n') && !line.contains(&b'\n') {
                return None;
            }
            start = end;
        }
    }
    (verdicts.next().is_none() && ends.next().is_none() && start == output.bytes.len()).then_some(())
}
