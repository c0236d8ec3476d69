//! A pseudo-terminal that the program runs in.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::{fs, thread};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::program;
use crate::support::wait_until;

/// The program in a terminal of so many rows and columns. Killed when it is dropped.
pub(crate) struct Terminal {
    ours: File,
    theirs: File,
    before: Termios,
    written: Arc<Mutex<Vec<u8>>>,
    child: Child,
}

impl Terminal {
    pub(crate) fn run(folder: &Path, args: &[&str], rows: u16, columns: u16) -> Self {
        let ours: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
        let theirs = fs::OpenOptions::new().read(true).write(true).open(name).unwrap();
        tcsetwinsize(&theirs, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let before = tcgetattr(&theirs).unwrap();
        let end = || Stdio::from(theirs.try_clone().unwrap());
        let child = program(folder, args)
            .env("TERM", "xterm-256color")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let ours = File::from(ours);
        let written = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, kept) = (ours.try_clone().unwrap(), Arc::clone(&written));
        thread::spawn(move || {
            let mut bytes = [0; 4_096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                kept.lock().unwrap().extend_from_slice(&bytes[..count]);
            }
        });
        Terminal { ours, theirs, before, written, child }
    }

    pub(crate) fn written(&self) -> String {
        String::from_utf8_lossy(&self.written.lock().unwrap()).into_owned()
    }

    /// What stands on the screen: what has been drawn since the cursor was last put in the corner.
    pub(crate) fn screen(&self) -> String {
        let written = self.written();
        let (_, drawn) = written.rsplit_once("\u{1b}[1;1H").unwrap_or_default();
        let mut pieces = drawn.split('\u{1b}');
        let mut text = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            let end = piece.find(|c: char| c.is_ascii_alphabetic()).map_or(piece.len(), |at| at + 1);
            text.push_str(&piece[end..]);
        }
        text.replace("\r\n", "\n")
    }

    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str) {
        wait_until(&format!("{what}, on\n{}", self.screen()), || self.screen().contains(what));
    }

    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        tcsetwinsize(&self.theirs, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })
            .unwrap();
    }

    pub(crate) fn press(&mut self, keys: &str) {
        self.ours.write_all(keys.as_bytes()).unwrap();
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether keys reach the program one by one, and are not shown.
    pub(crate) fn is_raw(&self) -> bool {
        !tcgetattr(&self.theirs).unwrap().local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO)
    }

    /// Waits for the program's end.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        wait_until("it ends", || self.child.try_wait().unwrap().is_some());
        self.child.wait().unwrap()
    }

    /// As it was before, and not only since the program's last words are still to be read.
    #[track_caller]
    pub(crate) fn assert_as_before(&self) {
        let after = tcgetattr(&self.theirs).unwrap();
        let modes = |of: &Termios| (of.input_modes, of.output_modes, of.control_modes, of.local_modes);
        assert_eq!(modes(&after), modes(&self.before));
        wait_until("the screen is left", || self.written().contains("\u{1b}[?1049l"));
        let written = self.written();
        for (taken, given) in
            [("\u{1b}[?1049h", "\u{1b}[?1049l"), ("\u{1b}[?25l", "\u{1b}[?25h"), ("\u{1b}[?7l", "\u{1b}[?7h")]
        {
            let (taken_at, given_at) = (written.rfind(taken), written.rfind(given));
            assert!(
                taken_at.is_some() && taken_at < given_at,
                "{taken:?} {taken_at:?}, {given:?} {given_at:?}"
            );
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
