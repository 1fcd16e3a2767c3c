//! This program's own code: addresses that mean the same in every process that
//! runs the same binary.

use std::sync::OnceLock;

use super::mutex::find_once;

/// A function of this program that another process can name: it works on a call `C`.
pub(crate) type Entry<C> = fn(&mut C);

/// Where one loaded binary lies, and what identifies it.
struct Image {
    /// First and one past the last executable address.
    code: (usize, usize),
    /// The linker's build id, or nothing.
    build_id: Vec<u8>,
    /// Whether it is the program itself rather than a library.
    is_program: bool,
}

/// The function that all offsets are counted from.
#[inline(never)]
fn anchor() {
    std::hint::black_box(());
}

fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    find_once(&IMAGE, || find_image(anchor as fn() as usize))
}

struct Search {
    address: usize,
    position: usize,
    found: Option<Image>,
}

fn find_image(address: usize) -> Image {
    let mut search = Search {
        address,
        position: 0,
        found: None,
    };
    // SAFETY: the callback gets the pointer given here, and only while this call runs.
    unsafe { libc::dl_iterate_phdr(Some(visit_image), (&raw mut search).cast()) };
    search.found.unwrap_or(Image {
        code: (0, 0),
        build_id: Vec::new(),
        is_program: false,
    })
}

unsafe extern "C" fn visit_image(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    data: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: `find_image` passes its own `Search`, which nobody else touches meanwhile.
    let search = unsafe { &mut *data.cast::<Search>() };
    // SAFETY: the loader passes a valid record.
    let info = unsafe { &*info };
    let position = search.position;
    search.position += 1;
    let base = info.dlpi_addr as usize;
    if info.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: the loader says how many headers there are, and they stay mapped.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let code = headers
        .iter()
        .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0)
        .map(|header| {
            (
                base + header.p_vaddr as usize,
                base + (header.p_vaddr + header.p_memsz) as usize,
            )
        })
        .find(|(from, to)| (*from..*to).contains(&search.address));
    let Some(code) = code else { return 0 };
    let mut build_id = Vec::new();
    for header in headers
        .iter()
        .filter(|header| header.p_type == libc::PT_NOTE)
    {
        // SAFETY: a note segment of a loaded binary is readable for its whole length.
        let notes = unsafe {
            std::slice::from_raw_parts(
                (base + header.p_vaddr as usize) as *const u8,
                header.p_memsz as usize,
            )
        };
        build_id.extend(find_build_id(notes).unwrap_or_default());
    }
    // The loader lists the program itself first.
    search.found = Some(Image {
        code,
        build_id,
        is_program: position == 0,
    });
    1
}

/// Finds the GNU build id in a note segment: records of name length, content
/// length and kind, each padded to four bytes (`elf(5)`).
fn find_build_id(mut notes: &[u8]) -> Option<Vec<u8>> {
    const NT_GNU_BUILD_ID: u32 = 3;
    let word =
        |bytes: &[u8], at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    while notes.len() >= 12 {
        let (name_len, content_len, kind) = (
            word(notes, 0)? as usize,
            word(notes, 4)? as usize,
            word(notes, 8)?,
        );
        let name_end = 12 + name_len.next_multiple_of(4);
        let content = notes.get(name_end..name_end + content_len)?;
        if kind == NT_GNU_BUILD_ID && notes.get(12..12 + name_len) == Some(b"GNU\0") {
            return Some(content.to_vec());
        }
        notes = notes.get(name_end + content_len.next_multiple_of(4)..)?;
    }
    None
}

/// What identifies this binary: two processes with equal stamps have the same code
/// at the same distance from the anchor.
pub(crate) fn stamp() -> u64 {
    static STAMP: OnceLock<u64> = OnceLock::new();
    *find_once(&STAMP, || {
        let image = image();
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        let extent = (image.code.1 - image.code.0).to_ne_bytes();
        let anchor = (anchor as fn() as usize - image.code.0).to_ne_bytes();
        for byte in image.build_id.iter().chain(&extent).chain(&anchor) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        hash
    })
}

/// Whether this library is linked into the running program, not into something
/// that was loaded later.
pub(crate) fn is_program() -> bool {
    image().is_program
}

/// The place of `entry` in this binary.
///
/// Nothing when it lies in another one, such as a shared library that the child
/// may not have loaded.
pub(crate) fn offset_of<C>(entry: Entry<C>) -> Option<u64> {
    let address = entry as usize;
    let (from, to) = image().code;
    (from..to)
        .contains(&address)
        .then(|| (address - from) as u64)
}

/// The function at a place that [`offset_of`] gave, for the same `C`, in a process with
/// the same [`stamp`].
pub(crate) fn entry_at<C>(offset: u64) -> Option<Entry<C>> {
    let (from, to) = image().code;
    let address = from.checked_add(usize::try_from(offset).ok()?)?;
    if !(from..to).contains(&address) {
        return None;
    }
    // SAFETY: the offset was made by `offset_of` in a process whose stamp was compared with
    // this one's: the same code lies at the same distance, and it is an `Entry` there.
    Some(unsafe { std::mem::transmute::<usize, Entry<C>>(address) })
}

/// Makes a value of a type that has no contents: a plain function, or a closure
/// that captures nothing.
pub(crate) fn conjure<F: Copy + 'static>() -> F {
    const {
        assert!(
            size_of::<F>() == 0,
            "the target must be a plain function or a closure without captures; pass data as arguments, \
             or use bunshin::scope, which forks, for closures that capture"
        );
    }
    // SAFETY: the type has no bytes, and it is `Copy`, so that the value its caller
    // holds may exist any number of times.
    unsafe { std::ptr::NonNull::<F>::dangling().read() }
}
