//! Keeps effectum's connections at synchronous = FULL.
//!
//! effectum 0.7.0 says `PRAGMA synchronous = 'normal'` on the connection that writes (`Queue::with_options`), which in WAL
//! mode syncs no commit, and it offers no way to say otherwise. So that it can be measured at equal durability, an
//! authorizer answers this one pragma with "ignore", and SQLite's own default, FULL, stays. An authorizer is asked when a
//! statement is prepared, and effectum keeps its statements prepared.

use std::ffi::{CStr, c_char, c_int, c_void};

use rusqlite::ffi;

/// For every connection that this process opens from now on.
#[allow(unsafe_code, reason = "rusqlite 0.31 has no safe way to reach connections that another crate opens")]
pub fn hold() {
    // SAFETY: the function has the signature that SQLite calls it with, and lives as long as the program.
    let registered = unsafe { ffi::sqlite3_auto_extension(Some(on_open)) };
    assert_eq!(registered, ffi::SQLITE_OK);
}

#[allow(unsafe_code, reason = "called by SQLite")]
unsafe extern "C" fn on_open(
    db: *mut ffi::sqlite3,
    _error: *mut *const c_char,
    _api: *const ffi::sqlite3_api_routines,
) -> c_int {
    // SAFETY: SQLite hands over the connection that it has just opened; the authorizer needs no data of its own.
    unsafe { ffi::sqlite3_set_authorizer(db, Some(authorize), std::ptr::null_mut()) }
}

#[allow(unsafe_code, reason = "called by SQLite")]
unsafe extern "C" fn authorize(
    _data: *mut c_void,
    action: c_int,
    pragma: *const c_char,
    value: *const c_char,
    _database: *const c_char,
    _trigger: *const c_char,
) -> c_int {
    if action != ffi::SQLITE_PRAGMA || pragma.is_null() || value.is_null() {
        return ffi::SQLITE_OK;
    }
    // SAFETY: neither is null, and SQLite passes strings that end in NUL.
    let pragma = unsafe { CStr::from_ptr(pragma) };
    if pragma.to_bytes().eq_ignore_ascii_case(b"synchronous") { ffi::SQLITE_IGNORE } else { ffi::SQLITE_OK }
}
