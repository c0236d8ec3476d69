//! SQLite's own layer to the operating system, wrapped (<https://sqlite.org/vfs.html>): registered as the default, so that the
//! library's connections go through it as they are.
#![allow(unsafe_code, reason = "SQLite calls it through C")]

use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::mem::size_of;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::{self, null_mut};
use std::slice;
use std::sync::{Arc, Once};

use postbox::rusqlite::ffi::{self, sqlite3_file, sqlite3_int64, sqlite3_io_methods, sqlite3_vfs};

use super::journal::Change;
use super::{Kind, Verdict, Watched, calls};

/// Once in a process; files that nobody watches go straight through.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: SQLite is initialised first; the wrapped VFS and the wrapper live as long as the process.
        unsafe {
            assert_eq!(ffi::sqlite3_initialize(), ffi::SQLITE_OK);
            let inner = ffi::sqlite3_vfs_find(ptr::null());
            assert!(!inner.is_null());
            let mut wrapper = *inner;
            wrapper.szOsFile += c_int::try_from(size_of::<File>()).unwrap();
            wrapper.zName = c"postbox-fault".as_ptr();
            wrapper.pNext = null_mut();
            wrapper.pAppData = inner.cast();
            wrapper.xOpen = Some(open);
            wrapper.xDelete = Some(delete);
            wrapper.xAccess = Some(access);
            wrapper.xFullPathname = Some(full_pathname);
            let wrapper = Box::leak(Box::new(wrapper));
            assert_eq!(ffi::sqlite3_vfs_register(wrapper, 1), ffi::SQLITE_OK);
        }
    });
}

/// What SQLite holds of an open file. The wrapped VFS's own follows it in memory.
#[repr(C)]
struct File {
    base: sqlite3_file,
    watch: Option<Box<Watch>>,
}

struct Watch {
    watched: Arc<Watched>,
    path: PathBuf,
}

static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    iVersion: 3,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: Some(fetch),
    xUnfetch: Some(unfetch),
};

/// SAFETY (of all below): SQLite passes a file that [`open`] has made and [`close`] has not ended, and the wrapped file's
/// methods are complete (unix's are of version 3).
unsafe fn inner(file: *mut sqlite3_file) -> *mut sqlite3_file {
    unsafe { file.cast::<File>().add(1).cast() }
}

unsafe fn methods<'a>(inner: *mut sqlite3_file) -> &'a sqlite3_io_methods {
    unsafe { &*(*inner).pMethods }
}

unsafe fn watch<'a>(file: *mut sqlite3_file) -> Option<&'a Watch> {
    unsafe { (*file.cast::<File>()).watch.as_deref() }
}

/// Calls the wrapped file's method.
macro_rules! pass {
    ($file:expr, $method:ident $(, $argument:expr)*) => {{
        let inner = unsafe { inner($file) };
        calls::inside(|| unsafe { methods(inner).$method.unwrap()(inner $(, $argument)*) })
    }};
}

unsafe extern "C" fn open(
    vfs: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    unsafe {
        (*file).pMethods = ptr::null();
        let watch = path_of(name).and_then(|path| Some(Watch { watched: Watched::of(&path)?, path }));
        let creates =
            watch.as_ref().is_some_and(|watch| flags & ffi::SQLITE_OPEN_CREATE != 0 && !watch.path.exists());
        if let (Some(watch), true) = (&watch, creates)
            && watch.watched.decide(Kind::Create, || ()) != Verdict::Go
        {
            return ffi::SQLITE_CANTOPEN;
        }
        let wrapped: *mut sqlite3_vfs = (*vfs).pAppData.cast();
        let inner = inner(file);
        (*inner).pMethods = ptr::null();
        let code = calls::inside(|| (*wrapped).xOpen.unwrap()(wrapped, name, inner, flags, out_flags));
        if code != ffi::SQLITE_OK {
            if !(*inner).pMethods.is_null() {
                methods(inner).xClose.unwrap()(inner);
            }
            return code;
        }
        if let Some(watch) = &watch
            && flags & ffi::SQLITE_OPEN_MAIN_DB != 0
        {
            watch.watched.state().opened += 1;
        }
        if let (Some(watch), true) = (&watch, creates) {
            watch.watched.note(|journal| journal.create(&watch.path));
        }
        ptr::write(
            file.cast::<File>(),
            File { base: sqlite3_file { pMethods: &raw const METHODS }, watch: watch.map(Box::new) },
        );
        code
    }
}

/// `None`: a temporary file of SQLite's own.
unsafe fn path_of(name: *const c_char) -> Option<PathBuf> {
    if name.is_null() {
        return None;
    }
    let name = unsafe { CStr::from_ptr(name) };
    Some(Path::new(OsStr::from_bytes(name.to_bytes())).to_owned())
}

unsafe extern "C" fn delete(vfs: *mut sqlite3_vfs, name: *const c_char, sync_folder: c_int) -> c_int {
    unsafe {
        let path = path_of(name);
        let watched = path.as_deref().and_then(Watched::of);
        match watched.as_ref().map_or(Verdict::Go, |watched| watched.decide(Kind::Delete, || ())) {
            Verdict::Go => {}
            Verdict::Pretend => return ffi::SQLITE_OK,
            Verdict::Fail(_) | Verdict::Halve(_) => return ffi::SQLITE_IOERR_DELETE,
        }
        let wrapped: *mut sqlite3_vfs = (*vfs).pAppData.cast();
        if let (Some(watched), Some(path)) = (&watched, &path) {
            // Before it is done, since it may sync the folder itself.
            watched.note(|journal| journal.delete(path));
        }
        calls::inside(|| (*wrapped).xDelete.unwrap()(wrapped, name, sync_folder))
    }
}

unsafe extern "C" fn access(
    vfs: *mut sqlite3_vfs,
    name: *const c_char,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    unsafe {
        let wrapped: *mut sqlite3_vfs = (*vfs).pAppData.cast();
        (*wrapped).xAccess.unwrap()(wrapped, name, flags, out)
    }
}

unsafe extern "C" fn full_pathname(
    vfs: *mut sqlite3_vfs,
    name: *const c_char,
    length: c_int,
    out: *mut c_char,
) -> c_int {
    unsafe {
        let wrapped: *mut sqlite3_vfs = (*vfs).pAppData.cast();
        (*wrapped).xFullPathname.unwrap()(wrapped, name, length, out)
    }
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    let code = pass!(file, xClose);
    unsafe { ptr::drop_in_place(&raw mut (*file.cast::<File>()).watch) };
    code
}

unsafe extern "C" fn read(
    file: *mut sqlite3_file,
    to: *mut c_void,
    length: c_int,
    at: sqlite3_int64,
) -> c_int {
    if let Some(watch) = unsafe { watch(file) }
        && watch.watched.decide(Kind::Read, || ()) != Verdict::Go
    {
        return ffi::SQLITE_IOERR_READ;
    }
    pass!(file, xRead, to, length, at)
}

unsafe extern "C" fn write(
    file: *mut sqlite3_file,
    from: *const c_void,
    length: c_int,
    at: sqlite3_int64,
) -> c_int {
    let Some(watch) = (unsafe { watch(file) }) else { return pass!(file, xWrite, from, length, at) };
    let half = || {
        let half = length / 2;
        if half > 0 && pass!(file, xWrite, from, half, at) == ffi::SQLITE_OK {
            note_write(watch, from, half, at);
        }
    };
    match watch.watched.decide(Kind::Write, half) {
        Verdict::Go => {}
        Verdict::Pretend => return ffi::SQLITE_OK,
        Verdict::Fail(why) => {
            return if why == libc::ENOSPC { ffi::SQLITE_FULL } else { ffi::SQLITE_IOERR_WRITE };
        }
        Verdict::Halve(_) => {
            half();
            return ffi::SQLITE_FULL;
        }
    }
    let code = pass!(file, xWrite, from, length, at);
    if code == ffi::SQLITE_OK {
        note_write(watch, from, length, at);
    }
    code
}

fn note_write(watch: &Watch, from: *const c_void, length: c_int, at: sqlite3_int64) {
    let (Ok(length), Ok(at)) = (usize::try_from(length), usize::try_from(at)) else { return };
    // SAFETY: SQLite passes so many bytes.
    let bytes = unsafe { slice::from_raw_parts(from.cast::<u8>(), length) };
    watch.watched.note_change(&watch.path, Change::Write { at, bytes: bytes.into() });
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, size: sqlite3_int64) -> c_int {
    let Some(watch) = (unsafe { watch(file) }) else { return pass!(file, xTruncate, size) };
    match watch.watched.decide(Kind::Truncate, || ()) {
        Verdict::Go => {}
        Verdict::Pretend => return ffi::SQLITE_OK,
        Verdict::Fail(_) | Verdict::Halve(_) => return ffi::SQLITE_IOERR_TRUNCATE,
    }
    let code = pass!(file, xTruncate, size);
    if code == ffi::SQLITE_OK {
        watch.watched.note_change(&watch.path, Change::Truncate { size: usize::try_from(size).unwrap_or(0) });
    }
    code
}

unsafe extern "C" fn sync(file: *mut sqlite3_file, flags: c_int) -> c_int {
    let Some(watch) = (unsafe { watch(file) }) else { return pass!(file, xSync, flags) };
    match watch.watched.decide(Kind::Sync, || ()) {
        Verdict::Go => {}
        Verdict::Pretend => return ffi::SQLITE_OK,
        Verdict::Fail(_) | Verdict::Halve(_) => return ffi::SQLITE_IOERR_FSYNC,
    }
    let before = watch.watched.before_sync();
    let code = pass!(file, xSync, flags);
    if code == ffi::SQLITE_OK {
        watch.watched.note_synced(&watch.path, before);
    }
    code
}

unsafe extern "C" fn file_size(file: *mut sqlite3_file, size: *mut sqlite3_int64) -> c_int {
    pass!(file, xFileSize, size)
}

unsafe extern "C" fn lock(file: *mut sqlite3_file, level: c_int) -> c_int {
    pass!(file, xLock, level)
}

unsafe extern "C" fn unlock(file: *mut sqlite3_file, level: c_int) -> c_int {
    pass!(file, xUnlock, level)
}

unsafe extern "C" fn check_reserved_lock(file: *mut sqlite3_file, out: *mut c_int) -> c_int {
    pass!(file, xCheckReservedLock, out)
}

unsafe extern "C" fn file_control(file: *mut sqlite3_file, op: c_int, argument: *mut c_void) -> c_int {
    pass!(file, xFileControl, op, argument)
}

unsafe extern "C" fn sector_size(file: *mut sqlite3_file) -> c_int {
    pass!(file, xSectorSize)
}

/// Nothing is promised: a write may be torn anywhere.
unsafe extern "C" fn device_characteristics(file: *mut sqlite3_file) -> c_int {
    let promised = pass!(file, xDeviceCharacteristics);
    if unsafe { watch(file) }.is_some() { 0 } else { promised }
}

unsafe extern "C" fn shm_map(
    file: *mut sqlite3_file,
    page: c_int,
    size: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    if let Some(watch) = unsafe { watch(file) }
        && extend != 0
        && watch.watched.decide(Kind::Grow, || ()) != Verdict::Go
    {
        return ffi::SQLITE_IOERR_SHMSIZE;
    }
    pass!(file, xShmMap, page, size, extend, out)
}

unsafe extern "C" fn shm_lock(file: *mut sqlite3_file, offset: c_int, count: c_int, flags: c_int) -> c_int {
    pass!(file, xShmLock, offset, count, flags)
}

unsafe extern "C" fn shm_barrier(file: *mut sqlite3_file) {
    pass!(file, xShmBarrier);
}

unsafe extern "C" fn shm_unmap(file: *mut sqlite3_file, deletes: c_int) -> c_int {
    pass!(file, xShmUnmap, deletes)
}

unsafe extern "C" fn fetch(
    file: *mut sqlite3_file,
    at: sqlite3_int64,
    length: c_int,
    out: *mut *mut c_void,
) -> c_int {
    pass!(file, xFetch, at, length, out)
}

unsafe extern "C" fn unfetch(file: *mut sqlite3_file, at: sqlite3_int64, page: *mut c_void) -> c_int {
    pass!(file, xUnfetch, at, page)
}
