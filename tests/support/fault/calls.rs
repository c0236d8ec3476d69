//! What the library asks of the system by itself: these functions stand before the C library's of the same names, in this
//! program alone, and go on to the kernel.
#![allow(unsafe_code, reason = "they take the place of C functions")]
// The linker gives these to std and to SQLite; `rename` and the rest have the C library's own signatures.

use std::cell::Cell;
use std::ffi::{CStr, OsStr, c_char, c_int, c_long};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::journal::Journal;
use super::{Kind, Verdict, Watched};

thread_local! {
    /// SQLite's own VFS is at work, and the wrapper has counted what it does.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

pub(super) fn inside<T>(f: impl FnOnce() -> T) -> T {
    let outer = INSIDE.replace(true);
    let value = f();
    INSIDE.set(outer);
    value
}

/// As `kill -9` does it.
pub(super) fn die() -> ! {
    // SAFETY: no memory is touched.
    unsafe {
        libc::kill(libc::getpid(), libc::SIGKILL);
    }
    loop {
        std::thread::park();
    }
}

/// This process again, as `fork` alone makes it: what `child` returns is its exit code. The child has this one thread.
pub(crate) fn fork(child: impl FnOnce() -> u8) -> u8 {
    // SAFETY: the child does what the test is about: it calls the library, and leaves by `_exit`.
    unsafe {
        match libc::fork() {
            0 => {
                libc::alarm(20); // a lock that another thread held at the fork is held for ever
                libc::_exit(child().into())
            }
            pid => {
                assert!(pid > 0);
                let mut status = 0;
                assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
                assert!(libc::WIFEXITED(status), "the child died: {status}");
                u8::try_from(libc::WEXITSTATUS(status)).unwrap()
            }
        }
    }
}

fn is_seen() -> bool {
    !INSIDE.try_with(Cell::get).unwrap_or(true) && Watched::is_anything_watched()
}

unsafe fn path_of<'a>(path: *const c_char) -> &'a Path {
    // SAFETY: the caller passes a C string.
    Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()))
}

fn fail(why: c_int) -> c_int {
    // SAFETY: this thread's own `errno`.
    unsafe { *libc::__errno_location() = why };
    -1
}

#[expect(clippy::cast_possible_truncation, reason = "these calls return an int")]
fn code(result: c_long) -> c_int {
    result as c_int
}

/// `None`: go on.
fn ask(watched: Option<&Arc<Watched>>, kind: Kind) -> Option<c_int> {
    match watched?.decide(kind, || ()) {
        Verdict::Go => None,
        Verdict::Pretend => Some(0),
        Verdict::Fail(why) | Verdict::Halve(why) => Some(fail(why)),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    let open = || code(unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags, mode) });
    if flags & libc::O_CREAT == 0 || !is_seen() {
        return open();
    }
    let file = unsafe { path_of(path) };
    let watched = if fs::exists(file).unwrap_or(true) { None } else { Watched::of(file) };
    if let Some(refused) = ask(watched.as_ref(), Kind::Create) {
        return refused;
    }
    let opened = open();
    if let (Some(watched), true) = (&watched, opened >= 0) {
        watched.note(|journal| journal.create(file));
    }
    opened
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    let go_on =
        || code(unsafe { libc::syscall(libc::SYS_renameat2, libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0) });
    if !is_seen() {
        return go_on();
    }
    let (from, to) = unsafe { (path_of(from), path_of(to)) };
    let watched = Watched::of(to);
    if let Some(refused) = ask(watched.as_ref(), Kind::Rename) {
        return refused;
    }
    let renamed = go_on();
    if let (Some(watched), 0) = (&watched, renamed) {
        watched.note(|journal| journal.rename(from, to));
    }
    renamed
}

#[unsafe(no_mangle)]
unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    let go_on = || code(unsafe { libc::syscall(libc::SYS_unlinkat, libc::AT_FDCWD, path, 0) });
    if !is_seen() {
        return go_on();
    }
    let file = unsafe { path_of(path) };
    let watched = if fs::exists(file).unwrap_or(false) { Watched::of(file) } else { None };
    if let Some(refused) = ask(watched.as_ref(), Kind::Delete) {
        return refused;
    }
    let deleted = go_on();
    if let (Some(watched), 0) = (&watched, deleted) {
        watched.note(|journal| journal.delete(file));
    }
    deleted
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    sync(fd, libc::SYS_fsync)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    sync(fd, libc::SYS_fdatasync)
}

/// What is watched is not really synced: only the journal can tell the difference, and it is quicker.
fn sync(fd: c_int, call: c_long) -> c_int {
    let go_on = || code(unsafe { libc::syscall(call, fd) });
    if !Watched::is_anything_watched() {
        return go_on();
    }
    let Some(path) = path_of_fd(fd) else { return go_on() };
    let Some(watched) = Watched::of(&path) else { return go_on() };
    if path.is_dir() {
        // Also for SQLite, which syncs the folder of a file that it has created.
        if let Some(refused) = ask(Some(&watched), Kind::SyncFolder) {
            return refused;
        }
        watched.note(Journal::sync_folder);
    } else if is_seen() {
        if let Some(refused) = ask(Some(&watched), Kind::Sync) {
            return refused;
        }
        let before = watched.before_sync();
        watched.note_synced(&path, before);
    }
    0
}

fn path_of_fd(fd: c_int) -> Option<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{fd}")).ok()
}
