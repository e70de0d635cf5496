//! The keyboard, and the terminal while `weir top` has it.
//!
//! In: what a terminal sends. Out: keys. The terminal is given back as it was, also where something panics.

use std::io::{self, Read as _, Write as _};
use std::sync::mpsc::{Receiver, channel};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The other screen, without a cursor; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// A key, as far as `weir top` has a use for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Char(char),
    Enter,
    Escape,
    Up,
    Down,
    Left,
    Right,
    PageUp,
    PageDown,
    Home,
    End,
    /// Ctrl-C.
    Interrupt,
    Other,
}

/// The terminal in raw mode. Dropping it gives it back.
pub(super) struct Terminal(Termios);

impl Terminal {
    pub(super) fn take() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Flush, &raw)?;
        let terminal = Self(before);
        write(ENTER)?;
        Ok(terminal)
    }

    /// Columns and rows.
    pub(super) fn size(&self) -> (usize, usize) {
        let size = tcgetwinsize(io::stdout()).ok();
        let size = size.map(|size| (usize::from(size.ws_col), usize::from(size.ws_row)));
        size.filter(|(columns, rows)| *columns > 0 && *rows > 0).unwrap_or((80, 24))
    }

    /// Shows lines that fit in place of those that are shown.
    pub(super) fn show(&self, lines: &[String]) -> io::Result<()> {
        let mut screen = String::from("\x1b[H");
        for (i, line) in lines.iter().enumerate() {
            screen += if i > 0 { "\r\n" } else { "" };
            screen += line;
            screen += "\x1b[K";
        }
        write(&(screen + "\x1b[J"))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = write(LEAVE);
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// What is pressed. The thread that reads ends with the process, or with the terminal.
pub(super) fn keys() -> Receiver<Key> {
    let (sender, keys) = channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok(read @ 1..) = io::stdin().read(&mut buffer) {
            if parse(&buffer[..read]).into_iter().any(|key| sender.send(key).is_err()) {
                return;
            }
        }
    });
    keys
}

/// The keys in what came at once. A terminal sends a key's sequence in one piece, so a lone escape is the
/// key of that name.
fn parse(mut bytes: &[u8]) -> Vec<Key> {
    const SEQUENCES: [(&[u8], Key); 15] = [
        (b"\x1b[A", Key::Up),
        (b"\x1b[B", Key::Down),
        (b"\x1b[C", Key::Right),
        (b"\x1b[D", Key::Left),
        (b"\x1bOA", Key::Up),
        (b"\x1bOB", Key::Down),
        (b"\x1b[5~", Key::PageUp),
        (b"\x1b[6~", Key::PageDown),
        (b"\x1b[H", Key::Home),
        (b"\x1b[F", Key::End),
        (b"\x1b[1~", Key::Home),
        (b"\x1b[4~", Key::End),
        (b"\r", Key::Enter),
        (b"\x7f", Key::Escape),
        (b"\x03", Key::Interrupt),
    ];
    let mut keys = Vec::new();
    while let Some(first) = bytes.first() {
        let known = SEQUENCES.iter().find(|(sequence, _)| bytes.starts_with(sequence));
        let (key, length) = match (known, first) {
            (Some((sequence, key)), _) => (*key, sequence.len()),
            (None, b'\x1b') if bytes.len() == 1 => (Key::Escape, 1),
            // A sequence that means nothing here.
            (None, b'\x1b') => (Key::Other, bytes.len()),
            (None, byte) if byte.is_ascii_graphic() => (Key::Char(char::from(*byte)), 1),
            (None, _) => (Key::Other, 1),
        };
        keys.push(key);
        bytes = &bytes[length..];
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_one_by_one_and_what_is_none_is_passed_over() {
        assert_eq!(parse(b"\x1b[B\x1b[Bq"), [Key::Down, Key::Down, Key::Char('q')]);
        assert_eq!(parse(b"\x1b"), [Key::Escape]);
        assert_eq!(parse(b"\x1b[15;5~"), [Key::Other]);
        assert_eq!(parse("\r\x03é".as_bytes()), [Key::Enter, Key::Interrupt, Key::Other, Key::Other]);
    }
}
