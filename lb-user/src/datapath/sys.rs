//! System calls that no library offers: bpf(2) for replacing a pinned link's program whatever its type, for ending a pinned
//! link, for asking what is attached to a control group, and for reading, writing and deleting whole batches of a map; ioctl(2)
//! for what a device does with VLAN tags; and the watch of a descriptor that is another type's.
//!
//! # Source
//! include/uapi/linux/bpf.h, `union bpf_attr`, Linux 5.7 (BPF_LINK_UPDATE), 5.9 (BPF_LINK_DETACH), 5.6 (batches);
//! include/uapi/linux/ethtool.h.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya::{
    Pod,
    maps::{MapData, RingBuf},
};
use tokio::io::unix::AsyncFd;

const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_MAP_DELETE_BATCH: libc::c_long = 27;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// Entries that are read, written or deleted at once.
const BATCH: usize = 4096;

/// `bpf_attr` for BPF_OBJ_GET.
#[repr(C)]
#[derive(Default)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// `bpf_attr.link_update`.
#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// `bpf_attr.link_detach`.
#[repr(C)]
struct LinkDetach {
    link_fd: u32,
}

/// `bpf_attr.query`, as of Linux 4.15.
#[repr(C)]
#[derive(Default)]
struct ProgQuery {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    _pad: u32,
}

/// `bpf_attr.batch`.
#[repr(C)]
#[derive(Default)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Performs a bpf(2) command.
///
/// # Safety
/// Pointers in `attr` are valid for what the command reads and writes.
unsafe fn bpf<A>(command: libc::c_long, attr: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: `attr` outlives the call and its size is given; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Opens what is pinned.
fn open(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut get = ObjGet { pathname: path.as_ptr().expose_provenance() as u64, ..ObjGet::default() };
    // SAFETY: `path` is a string that outlives the call.
    let opened = unsafe { bpf(BPF_OBJ_GET, &mut get) }?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(opened as i32) })
}

/// Replaces the program behind a pinned link, atomically: no packet and no connect() goes by.
///
/// # Errors
/// `NotFound` if nothing is pinned at `pin`; `ENOLINK` if the device or cgroup of the link is gone.
pub fn replace_program(pin: &Path, program: BorrowedFd<'_>) -> io::Result<()> {
    let link = open(pin)?;
    let mut update = LinkUpdate {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: program.as_raw_fd() as u32,
        ..LinkUpdate::default()
    };
    // SAFETY: the command takes no pointers.
    unsafe { bpf(BPF_LINK_UPDATE, &mut update) }.map(|_| ())
}

/// Detaches the program of a pinned link, and has done so on return. Once its pin is removed, the kernel does the same, but
/// only after a grace period: until then the same program cannot be attached at the same place again.
///
/// # Errors
/// `NotFound` if nothing is pinned at `pin`; what the kernel says.
pub fn detach(pin: &Path) -> io::Result<()> {
    let link = open(pin)?;
    let mut detach = LinkDetach { link_fd: link.as_raw_fd() as u32 };
    // SAFETY: the command takes no pointers.
    unsafe { bpf(BPF_LINK_DETACH, &mut detach) }.map(|_| ())
}

/// Where programs of a control group are attached: `BPF_CGROUP_INET4_CONNECT`, `BPF_CGROUP_INET6_CONNECT`.
pub const CONNECT: [u32; 2] = [10, 11];

/// Returns the numbers of the programs that are attached to a control group itself, in the order in which they run.
///
/// # Errors
/// What the kernel says; `ENOSPC` if there are more than 64.
pub fn programs_at(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; 64];
    let mut query = ProgQuery {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_type,
        prog_ids: ids.as_mut_ptr().expose_provenance() as u64,
        prog_cnt: ids.len() as u32,
        ..ProgQuery::default()
    };
    // SAFETY: the kernel writes at most `prog_cnt` numbers to `ids`, which outlives the call.
    unsafe { bpf(BPF_PROG_QUERY, &mut query) }?;
    Ok(ids.iter().copied().take(query.prog_cnt as usize).collect())
}

/// Shows every entry of a map. Entries of a hash map that come or go meanwhile may be missed or shown; none is shown torn in its
/// key.
///
/// # Errors
/// What the kernel says; entries shown until then stay shown.
pub fn scan<K: Pod, V: Pod>(map: BorrowedFd<'_>, mut each: impl FnMut(&K, &V)) -> io::Result<()> {
    let mut room = BATCH;
    let (mut from, mut to) = (0_u64, 0_u64);
    let mut started = false;
    loop {
        let mut keys: Vec<std::mem::MaybeUninit<K>> = Vec::with_capacity(room);
        let mut values: Vec<std::mem::MaybeUninit<V>> = Vec::with_capacity(room);
        let mut batch = Batch {
            in_batch: if started { (&raw const from).expose_provenance() as u64 } else { 0 },
            out_batch: (&raw mut to).expose_provenance() as u64,
            keys: keys.as_mut_ptr().expose_provenance() as u64,
            values: values.as_mut_ptr().expose_provenance() as u64,
            count: room as u32,
            map_fd: map.as_raw_fd() as u32,
            ..Batch::default()
        };
        // SAFETY: the buffers hold `count` entries of the map's key and value, whose sizes the caller's types have.
        let result = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut batch) };
        let ended = match result {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < BATCH * 64 => {
                room *= 4;
                continue;
            }
            Err(error) => return Err(error),
        };
        let count = (batch.count as usize).min(room);
        // SAFETY: the kernel has written `count` entries, and every bit pattern is a value of a `Pod`.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        for (key, value) in keys.iter().zip(&values) {
            // SAFETY: written by the kernel, as above.
            each(unsafe { key.assume_init_ref() }, unsafe { value.assume_init_ref() });
        }
        if ended {
            return Ok(());
        }
        from = to;
        started = true;
    }
}

/// Writes entries, one after the other.
///
/// # Errors
/// What the kernel says; some may be written by then.
pub fn write<K: Pod, V: Pod>(map: BorrowedFd<'_>, entries: &[(K, V)]) -> io::Result<()> {
    for some in entries.chunks(BATCH) {
        let (keys, values): (Vec<K>, Vec<V>) = some.iter().copied().unzip();
        let mut batch = Batch {
            keys: keys.as_ptr().expose_provenance() as u64,
            values: values.as_ptr().expose_provenance() as u64,
            count: some.len() as u32,
            map_fd: map.as_raw_fd() as u32,
            ..Batch::default()
        };
        // SAFETY: the buffers hold `count` keys and values, whose sizes the caller's types have.
        unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut batch) }?;
    }
    Ok(())
}

/// Deletes entries of a hash map; those that are gone already do not matter.
///
/// # Errors
/// What the kernel says, other than that an entry is gone.
pub fn delete<K: Pod>(map: BorrowedFd<'_>, mut keys: &[K]) -> io::Result<()> {
    while !keys.is_empty() {
        let some = &keys[..keys.len().min(BATCH)];
        let mut batch = Batch {
            keys: some.as_ptr().expose_provenance() as u64,
            count: some.len() as u32,
            map_fd: map.as_raw_fd() as u32,
            ..Batch::default()
        };
        // SAFETY: `some` holds `count` keys, whose size the caller's type has.
        match unsafe { bpf(BPF_MAP_DELETE_BATCH, &mut batch) } {
            Ok(_) => keys = &keys[some.len()..],
            // It stops at the first that is gone, having deleted `count`.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                keys = &keys[(batch.count as usize + 1).min(keys.len())..];
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Watches a ring buffer for what comes.
///
/// # Errors
/// What the kernel says.
///
/// # Panics
/// Outside a tokio runtime.
pub fn watch(ring: RingBuf<MapData>) -> io::Result<AsyncFd<RingBuf<MapData>>> {
    // SAFETY: the ring owns its descriptor, names no other, and closes it when it is dropped.
    Ok(unsafe { AsyncFd::register(ring) }?)
}

/// Returns whether a device takes the VLAN tag (802.1Q) off a packet and tells it beside, where XDP does not see it. Of two
/// tags, one stays in any case.
///
/// # Errors
/// What the kernel says; `EOPNOTSUPP` if the driver does not tell.
pub fn takes_tags_off(interface: &str) -> io::Result<bool> {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    const ETHTOOL_GFLAGS: u32 = 0x25;
    const ETH_FLAG_RXVLAN: u32 = 1 << 8;
    /// `struct ifreq`, of which the command reads a name and a pointer.
    #[repr(C)]
    struct Request {
        name: [u8; libc::IFNAMSIZ],
        value: *mut [u32; 2],
        _rest: [u64; 2],
    }
    let mut value = [ETHTOOL_GFLAGS, 0];
    let mut request = Request { name: [0; libc::IFNAMSIZ], value: &raw mut value, _rest: [0; 2] };
    // The last byte stays zero.
    let len = interface.len().min(libc::IFNAMSIZ - 1);
    request.name[..len].copy_from_slice(&interface.as_bytes()[..len]);
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: the request and the value that it points to outlive the call; the kernel writes the value's second word.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value[1] & ETH_FLAG_RXVLAN != 0) }
}
