//! A command at a terminal, and someone who sits there.

#![allow(unsafe_code)] // openpty

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::process::{Command, ExitStatus};
use std::ptr::{null, null_mut};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::process::Process;
use crate::wait::{SOON, eventually};

/// How large it is.
static SIZE: libc::winsize = libc::winsize { ws_row: 30, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };

/// A command whose input and output are a terminal.
#[derive(Debug)]
pub struct Terminal {
    process: Process,
    keyboard: File,
    /// Kept open, so that what was printed can be read when the command has ended.
    ours: OwnedFd,
    shown: Arc<Mutex<Vec<u8>>>,
    answered: usize,
}

impl Terminal {
    /// Starts it.
    #[track_caller]
    pub fn start(name: &str, command: Command) -> Self {
        let (keyboard, ours) = pair();
        let [input, out, err] = [(); 3].map(|()| ours.try_clone().expect("a descriptor"));
        let process = Process::start_on(name, command, [input.into(), out.into(), err.into()]);
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut screen, to) = (keyboard.try_clone().expect("a descriptor"), shown.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = screen.read(&mut buffer) {
                crate::lock(&to).extend_from_slice(&buffer[..read]);
            }
        });
        Self { process, keyboard, ours, shown, answered: 0 }
    }

    /// All that was shown so far.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&crate::lock(&self.shown)).into_owned()
    }

    /// Waits until this is shown after all that was shown before, and presses keys then.
    #[track_caller]
    pub fn answer(&mut self, text: &str, keys: &str) {
        let new = || self.shown().split_off(self.answered);
        let new = eventually(SOON, text, new, |new| new.contains(text));
        self.answered += new.find(text).unwrap_or_default() + text.len();
        self.keyboard.write_all(keys.as_bytes()).expect("press keys");
    }

    /// Whether each key is shown as it is pressed and a line is given when it is complete, as a shell leaves
    /// a terminal.
    pub fn is_ordinary(&self) -> bool {
        let mut state = std::mem::MaybeUninit::uninit();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&self.ours);
        // SAFETY: the descriptor is open, and there is room for what is asked.
        let code = unsafe { libc::tcgetattr(fd, state.as_mut_ptr()) };
        assert_eq!(code, 0, "look at the terminal");
        // SAFETY: it was filled in.
        let state = unsafe { state.assume_init() };
        state.c_lflag & (libc::ECHO | libc::ICANON) == libc::ECHO | libc::ICANON
    }

    /// Waits until it has ended.
    #[track_caller]
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        self.process.wait(within)
    }
}

/// The two ends of a terminal: that of whoever sits at it, and that of programs.
fn pair() -> (File, OwnedFd) {
    let (mut theirs, mut ours) = (-1, -1);
    // SAFETY: there is room for both descriptors; no name and no settings are asked for.
    let code = unsafe { libc::openpty(&raw mut theirs, &raw mut ours, null_mut(), null(), &raw const SIZE) };
    assert_eq!(code, 0, "open a terminal: {}", std::io::Error::last_os_error());
    // SAFETY: both are open and nobody else's.
    unsafe { (File::from_raw_fd(theirs), OwnedFd::from_raw_fd(ours)) }
}
