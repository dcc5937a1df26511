//! Where SQLite calls in: each function checks what C gave, and hands it to a [`Handle`] or to the disk that the path names.
#![allow(
    unsafe_code,
    reason = "SQLite calls a VFS through C function pointers: docs/decisions/0026-a-simulated-disk-below-sqlite.md"
)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use rusqlite::ffi;

use crate::chance::Chance;
use crate::disk::DiskError;
use crate::handle::Handle;
use crate::state::Answer;

/// The name to open connections with: `Connection::open_with_flags_and_vfs(path, flags, flotilla_disk::NAME)`.
pub const NAME: &CStr = c"flotilla-disk";

const PATH_BYTES_MAX: c_int = 512;
/// 1 January 1970 as SQLite counts, in milliseconds since noon in Greenwich on 24 November 4714 BC.
const UNIX_EPOCH_MS: i64 = 210_866_760_000_000;
const DAY_MS: f64 = 86_400_000.0;

static TIME_MS: AtomicI64 = AtomicI64::new(UNIX_EPOCH_MS);
static SEED: AtomicU64 = AtomicU64::new(0);

/// Makes SQLite know the VFS; the default one stays what it is. [`crate::Disk::new`] does it too. Once per process, however often it is called.
///
/// # Errors
/// When SQLite refuses.
pub fn register() -> Result<(), DiskError> {
    static DONE: OnceLock<c_int> = OnceLock::new();
    let code = DONE.get_or_init(|| {
        let vfs = Box::leak(Box::new(table()));
        // SAFETY: the table is never freed, and SQLite alone changes it (its link to the next one).
        unsafe { ffi::sqlite3_vfs_register(vfs, 0) }
    });
    if *code == ffi::SQLITE_OK { Ok(()) } else { Err(DiskError::Refused(*code)) }
}

/// Makes the VFS also the one that SQLite takes where none is named, for the whole process: code that opens a database by its path
/// alone then finds it on a simulated disk, and none on the real one.
///
/// # Errors
/// When SQLite refuses.
pub fn register_as_default() -> Result<(), DiskError> {
    register()?;
    // SAFETY: the name ends with a zero byte; the answer is null or a table that is registered, and ours is never freed. To
    // register it again only changes its place in SQLite's list.
    let code = unsafe { ffi::sqlite3_vfs_register(ffi::sqlite3_vfs_find(NAME.as_ptr()), 1) };
    if code == ffi::SQLITE_OK { Ok(()) } else { Err(DiskError::Refused(code)) }
}

/// Sets the time that databases on simulated disks see (`datetime('now')`), in milliseconds since 1970, for the whole process.
pub fn set_time(unix_ms: i64) {
    TIME_MS.store(UNIX_EPOCH_MS.saturating_add(unix_ms), Ordering::Relaxed);
}

/// Starts SQLite's own random numbers (`random()`, salts of logs) anew from `seed`. SQLite has one source for the whole process,
/// so this also concerns databases elsewhere, and a history repeats only if one thread at a time runs SQLite.
///
/// # Errors
/// When SQLite refuses.
pub fn set_seed(seed: u64) -> Result<(), DiskError> {
    register()?;
    SEED.store(seed, Ordering::Relaxed);
    let [.., high, low] = Chance::new(seed).next().to_le_bytes();
    let [first, second, ..] = Chance::new(seed ^ 1).next().to_le_bytes();
    // Zero would mean the machine's own randomness.
    let number = c_int::from_le_bytes([high, low, first, second]) | 1;
    // SAFETY: this control takes an int and a connection, which may be null; it may be called at any time.
    let code = unsafe { ffi::sqlite3_test_control(ffi::SQLITE_TESTCTRL_PRNG_SEED, number, null_mut::<ffi::sqlite3>()) };
    if code == ffi::SQLITE_OK { Ok(()) } else { Err(DiskError::Refused(code)) }
}

/// What SQLite allocates for an open file: its own part, then ours.
#[repr(C)]
struct OpenFile {
    base: ffi::sqlite3_file,
    handle: *mut Handle,
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    // Version 2 has shared memory; 3 would add mapped pages, around which no fault can happen.
    iVersion: 2,
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
    xFetch: None,
    xUnfetch: None,
};

#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "the size of two pointers")]
fn table() -> ffi::sqlite3_vfs {
    ffi::sqlite3_vfs {
        iVersion: 2,
        szOsFile: size_of::<OpenFile>() as c_int,
        mxPathname: PATH_BYTES_MAX,
        pNext: null_mut(),
        zName: NAME.as_ptr(),
        pAppData: null_mut(),
        xOpen: Some(open),
        xDelete: Some(delete),
        xAccess: Some(access),
        xFullPathname: Some(full_pathname),
        xDlOpen: Some(dl_open),
        xDlError: Some(dl_error),
        xDlSym: Some(dl_sym),
        xDlClose: Some(dl_close),
        xRandomness: Some(randomness),
        xSleep: Some(sleep),
        xCurrentTime: Some(current_time),
        xGetLastError: None,
        xCurrentTimeInt64: Some(current_time_int64),
        xSetSystemCall: None,
        xGetSystemCall: None,
        xNextSystemCall: None,
    }
}

fn code(answer: Answer<()>) -> c_int {
    answer.err().unwrap_or(ffi::SQLITE_OK)
}

fn size(number: impl TryInto<usize>) -> Answer<usize> {
    number.try_into().map_err(|_| ffi::SQLITE_MISUSE)
}

/// The text of a path, none if it is not UTF-8.
///
/// # Safety
/// `path` is null or ends with a zero byte, and stays as it is for `'a`.
unsafe fn text<'a>(path: *const c_char) -> Option<&'a str> {
    if path.is_null() {
        return None;
    }
    // SAFETY: not null, and the caller vouches for the rest.
    unsafe { CStr::from_ptr(path) }.to_str().ok()
}

/// The handle of an open file.
///
/// # Safety
/// `file` was opened by [`open`] and is not closed; no other reference to its handle lives. SQLite keeps to both: it calls the
/// methods of one file one at a time, under the mutex of the connection that owns the file (or its user does, where the
/// connection was opened without one).
unsafe fn handle<'a>(file: *mut ffi::sqlite3_file) -> &'a mut Handle {
    // SAFETY: `open` laid an `OpenFile` there, with a handle that only `close` frees.
    unsafe { &mut *(*file.cast::<OpenFile>()).handle }
}

unsafe extern "C" fn open(
    _: *mut ffi::sqlite3_vfs,
    path: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    flags_out: *mut c_int,
) -> c_int {
    let file = file.cast::<OpenFile>();
    // SAFETY: SQLite gives `szOsFile` bytes of its own, aligned for a pointer. Without methods it will not close the file.
    unsafe { file.write(OpenFile { base: ffi::sqlite3_file { pMethods: std::ptr::null() }, handle: null_mut() }) };
    // SAFETY: a path ends with a zero byte and lives as long as the file is open.
    let name = unsafe { text(path) };
    if name.is_none() && !path.is_null() {
        return ffi::SQLITE_CANTOPEN;
    }
    let opened = match Handle::open(name, flags) {
        Ok(opened) => opened,
        Err(code) => return code,
    };
    // SAFETY: as above; `flags_out` is null or a place for one int.
    unsafe {
        (*file).handle = Box::into_raw(Box::new(opened));
        (*file).base.pMethods = &raw const METHODS;
        if !flags_out.is_null() {
            *flags_out = flags;
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    let file = file.cast::<OpenFile>();
    // SAFETY: `open` made the handle by `Box::into_raw`, and SQLite closes a file once; null guards against a second time.
    unsafe {
        let handle = std::mem::replace(&mut (*file).handle, null_mut());
        if !handle.is_null() {
            drop(Box::from_raw(handle));
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, into: *mut c_void, count: c_int, offset: i64) -> c_int {
    let (Ok(count), Ok(offset)) = (size(count), size(offset)) else { return ffi::SQLITE_MISUSE };
    // SAFETY: `into` has room for `count` bytes that nobody else uses meanwhile; as zeros they may be a slice of bytes.
    let into = unsafe {
        into.cast::<u8>().write_bytes(0, count);
        std::slice::from_raw_parts_mut(into.cast::<u8>(), count)
    };
    // SAFETY: SQLite reads an open file.
    match unsafe { handle(file) }.read(offset, into) {
        Ok(found) if found == count => ffi::SQLITE_OK,
        Ok(_) => ffi::SQLITE_IOERR_SHORT_READ,
        Err(code) => code,
    }
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, data: *const c_void, count: c_int, offset: i64) -> c_int {
    let (Ok(count), Ok(offset)) = (size(count), size(offset)) else { return ffi::SQLITE_MISUSE };
    // SAFETY: `data` has `count` bytes that nobody changes meanwhile.
    let data = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), count) };
    // SAFETY: SQLite writes to an open file.
    code(unsafe { handle(file) }.write(offset, data))
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, len: i64) -> c_int {
    // SAFETY: SQLite cuts an open file.
    code(size(len).and_then(|len| unsafe { handle(file) }.set_len(len)))
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, _flags: c_int) -> c_int {
    // SAFETY: SQLite syncs an open file.
    code(unsafe { handle(file) }.sync())
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, len: *mut i64) -> c_int {
    // SAFETY: SQLite asks about an open file, and gives a place for the answer.
    code(unsafe { handle(file) }.len().map(|found| unsafe { *len = i64::try_from(found).unwrap_or(i64::MAX) }))
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: SQLite locks an open file.
    code(unsafe { handle(file) }.lock(level))
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: SQLite unlocks an open file.
    code(unsafe { handle(file) }.unlock(level))
}

unsafe extern "C" fn check_reserved_lock(file: *mut ffi::sqlite3_file, reserved: *mut c_int) -> c_int {
    // SAFETY: SQLite asks about an open file, and gives a place for the answer.
    code(unsafe { handle(file) }.is_reserved().map(|found| unsafe { *reserved = c_int::from(found) }))
}

unsafe extern "C" fn file_control(_: *mut ffi::sqlite3_file, _: c_int, _: *mut c_void) -> c_int {
    ffi::SQLITE_NOTFOUND
}

unsafe extern "C" fn sector_size(_: *mut ffi::sqlite3_file) -> c_int {
    // As SQLite takes it on Unix.
    4096
}

/// As on Unix, and no more: writes are neither atomic nor in order, but leave the bytes beside them alone.
unsafe extern "C" fn device_characteristics(_: *mut ffi::sqlite3_file) -> c_int {
    ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE
}

unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    index: c_int,
    bytes: c_int,
    extend: c_int,
    region: *mut *mut c_void,
) -> c_int {
    let (Ok(index), Ok(bytes)) = (size(index), size(bytes)) else { return ffi::SQLITE_MISUSE };
    // SAFETY: SQLite maps an open file.
    let found = unsafe { handle(file) }.shm_region(index, bytes, extend != 0);
    // SAFETY: SQLite gives a place for the answer. The region outlives what it is used for: the handle holds it until `shm_unmap`
    // or `close`.
    unsafe { *region = found.unwrap_or(null_mut()) };
    code(found.map(|_| ()))
}

unsafe extern "C" fn shm_lock(file: *mut ffi::sqlite3_file, first: c_int, count: c_int, flags: c_int) -> c_int {
    let (Ok(first), Ok(count)) = (size(first), size(count)) else { return ffi::SQLITE_MISUSE };
    // SAFETY: SQLite locks an open file.
    code(unsafe { handle(file) }.shm_lock(first..first + count, flags))
}

unsafe extern "C" fn shm_barrier(_: *mut ffi::sqlite3_file) {
    std::sync::atomic::fence(Ordering::SeqCst);
}

unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, _delete: c_int) -> c_int {
    // SAFETY: SQLite unmaps an open file, after which it uses no pointer into the regions.
    unsafe { handle(file) }.shm_unmap();
    ffi::SQLITE_OK
}

unsafe extern "C" fn delete(_: *mut ffi::sqlite3_vfs, path: *const c_char, durable: c_int) -> c_int {
    // SAFETY: a path ends with a zero byte and lives through the call.
    let Some((machine, name)) = unsafe { text(path) }.and_then(crate::disk::find) else {
        return ffi::SQLITE_IOERR_DELETE_NOENT;
    };
    code(machine.state().delete(name, durable != 0))
}

unsafe extern "C" fn access(_: *mut ffi::sqlite3_vfs, path: *const c_char, _flags: c_int, found: *mut c_int) -> c_int {
    // SAFETY: a path ends with a zero byte and lives through the call.
    let place = unsafe { text(path) }.and_then(crate::disk::find);
    let holds = place.is_some_and(|(machine, name)| machine.state().holds(name));
    // SAFETY: SQLite gives a place for the answer.
    unsafe { *found = c_int::from(holds) };
    ffi::SQLITE_OK
}

/// Paths here are absolute as they are.
unsafe extern "C" fn full_pathname(
    _: *mut ffi::sqlite3_vfs,
    path: *const c_char,
    room: c_int,
    full: *mut c_char,
) -> c_int {
    // SAFETY: a path ends with a zero byte and lives through the call.
    let bytes = unsafe { CStr::from_ptr(path) }.to_bytes_with_nul();
    if size(room).is_ok_and(|room| bytes.len() <= room) {
        // SAFETY: `full` has `room` bytes, which do not overlap with the path.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), full.cast(), bytes.len()) };
        ffi::SQLITE_OK
    } else {
        ffi::SQLITE_CANTOPEN
    }
}

unsafe extern "C" fn dl_open(_: *mut ffi::sqlite3_vfs, _: *const c_char) -> *mut c_void {
    null_mut()
}

unsafe extern "C" fn dl_error(_: *mut ffi::sqlite3_vfs, room: c_int, message: *mut c_char) {
    if room > 0 {
        // SAFETY: `message` has `room` bytes: an empty text fits.
        unsafe { *message = 0 };
    }
}

unsafe extern "C" fn dl_sym(
    _: *mut ffi::sqlite3_vfs,
    _: *mut c_void,
    _: *const c_char,
) -> Option<unsafe extern "C" fn(*mut ffi::sqlite3_vfs, *mut c_void, *const c_char)> {
    None
}

unsafe extern "C" fn dl_close(_: *mut ffi::sqlite3_vfs, _: *mut c_void) {}

/// SQLite asks its default VFS alone, and not even that after [`set_seed`].
unsafe extern "C" fn randomness(_: *mut ffi::sqlite3_vfs, count: c_int, into: *mut c_char) -> c_int {
    let Ok(room) = size(count) else { return 0 };
    for index in 0..room {
        let [byte, ..] = Chance::new(SEED.fetch_add(1, Ordering::Relaxed)).next().to_le_bytes();
        // SAFETY: `into` has `count` bytes.
        unsafe { into.add(index).write(byte.cast_signed() as c_char) };
    }
    count
}

/// Time passes only by [`set_time`].
unsafe extern "C" fn sleep(_: *mut ffi::sqlite3_vfs, microseconds: c_int) -> c_int {
    microseconds
}

#[expect(clippy::cast_precision_loss, reason = "a date before the year 280000 fits into 53 bits")]
unsafe extern "C" fn current_time(_: *mut ffi::sqlite3_vfs, days: *mut f64) -> c_int {
    // SAFETY: SQLite gives a place for the answer.
    unsafe { *days = TIME_MS.load(Ordering::Relaxed) as f64 / DAY_MS };
    ffi::SQLITE_OK
}

unsafe extern "C" fn current_time_int64(_: *mut ffi::sqlite3_vfs, ms: *mut i64) -> c_int {
    // SAFETY: SQLite gives a place for the answer.
    unsafe { *ms = TIME_MS.load(Ordering::Relaxed) };
    ffi::SQLITE_OK
}
