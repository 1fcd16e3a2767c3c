//! Shared maps and shared memory: ours, maps of one process as a ceiling, CPython's
//! manager, and the bare system calls.

use std::collections::HashMap;
use std::hint::black_box;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use bunshin::{Process, RawValue, SharedMap, SharedMemory};
use dashmap::DashMap;

use crate::measure::{self, Result};
use crate::workload::Work;

/// Entries in a map.
const ENTRIES: u64 = 10_000;
/// The most operations in one batch.
const BATCH: u64 = 10_000_000;

/// Numbers below [`ENTRIES`] in no pattern.
struct Keys(u64);

impl Keys {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % ENTRIES
    }
}

fn text(key: u64) -> String {
    format!("key number {key}")
}

/// A map of numbers, by any peer.
trait Numbers {
    fn get(&self, key: u64) -> Result<Option<u64>>;
    fn insert(&self, key: u64, value: u64) -> Result<()>;
}

impl Numbers for SharedMap<u64, u64> {
    fn get(&self, key: u64) -> Result<Option<u64>> {
        Ok(SharedMap::get(self, &key)?)
    }

    fn insert(&self, key: u64, value: u64) -> Result<()> {
        SharedMap::insert(self, &key, &value)?;
        Ok(())
    }
}

impl Numbers for Mutex<HashMap<u64, u64>> {
    fn get(&self, key: u64) -> Result<Option<u64>> {
        let map = self.lock().map_err(|_| "poisoned")?;
        Ok(map.get(&key).copied())
    }

    fn insert(&self, key: u64, value: u64) -> Result<()> {
        self.lock().map_err(|_| "poisoned")?.insert(key, value);
        Ok(())
    }
}

impl Numbers for DashMap<u64, u64> {
    fn get(&self, key: u64) -> Result<Option<u64>> {
        Ok(DashMap::get(self, &key).map(|value| *value))
    }

    fn insert(&self, key: u64, value: u64) -> Result<()> {
        DashMap::insert(self, key, value);
        Ok(())
    }
}

fn fill(map: &impl Numbers) -> Result<()> {
    (0..ENTRIES).try_for_each(|key| map.insert(key, key + 1))
}

fn gets(map: &impl Numbers, keys: &mut Keys, n_items: u64) -> Result<()> {
    for _ in 0..n_items {
        let key = keys.next();
        if map.get(key)? != Some(key + 1) {
            return Err("a value is missing or wrong".into());
        }
    }
    Ok(())
}

fn get_alone(work: &Work, map: &impl Numbers) -> Result<f64> {
    measure::pin(work.cores()?.0)?;
    fill(map)?;
    let mut keys = Keys(88_172_645_463_325_252);
    measure::seconds_each(work.budget, BATCH, |n_items| gets(map, &mut keys, n_items))
}

fn insert_alone(work: &Work, map: &impl Numbers) -> Result<f64> {
    measure::pin(work.cores()?.0)?;
    fill(map)?;
    let mut keys = Keys(88_172_645_463_325_252);
    measure::seconds_each(work.budget, BATCH, |n_items| {
        (0..n_items).try_for_each(|n| map.insert(keys.next(), n))
    })
}

pub fn map_get(work: &Work) -> Result<f64> {
    get_alone(work, &SharedMap::new()?)
}

pub fn map_insert(work: &Work) -> Result<f64> {
    insert_alone(work, &SharedMap::new()?)
}

pub fn mutex_get(work: &Work) -> Result<f64> {
    get_alone(work, &Mutex::new(HashMap::new()))
}

pub fn mutex_insert(work: &Work) -> Result<f64> {
    insert_alone(work, &Mutex::new(HashMap::new()))
}

pub fn dashmap_get(work: &Work) -> Result<f64> {
    get_alone(work, &DashMap::new())
}

pub fn dashmap_insert(work: &Work) -> Result<f64> {
    insert_alone(work, &DashMap::new())
}

/// Short strings as keys and values.
pub fn map_get_text(work: &Work) -> Result<f64> {
    measure::pin(work.cores()?.0)?;
    let map = SharedMap::<String, String>::new()?;
    let texts: Vec<String> = (0..ENTRIES).map(text).collect();
    for text in &texts {
        map.insert(text, text)?;
    }
    let mut keys = Keys(88_172_645_463_325_252);
    measure::seconds_each(work.budget, BATCH, |n_items| {
        for _ in 0..n_items {
            let text = &texts[keys.next() as usize];
            if black_box(map.get(text)?).is_none() {
                return Err("a value is missing".into());
            }
        }
        Ok(())
    })
}

pub fn dashmap_get_text(work: &Work) -> Result<f64> {
    measure::pin(work.cores()?.0)?;
    let map: DashMap<String, String> = (0..ENTRIES).map(|n| (text(n), text(n))).collect();
    let texts: Vec<String> = (0..ENTRIES).map(text).collect();
    let mut keys = Keys(88_172_645_463_325_252);
    measure::seconds_each(work.budget, BATCH, |n_items| {
        for _ in 0..n_items {
            let text = &texts[keys.next() as usize];
            if black_box(map.get(text).map(|value| value.clone())).is_none() {
                return Err("a value is missing".into());
            }
        }
        Ok(())
    })
}

/// Reads for as long as `stop` says nothing else; how often.
fn read_until(map: &impl Numbers, stop: impl Fn() -> bool) -> Result<u64> {
    let mut keys = Keys(2_463_534_242);
    let mut n_items = 0;
    while !stop() {
        gets(map, &mut keys, 1000)?;
        n_items += 1000;
    }
    Ok(n_items)
}

/// Seconds a get while two readers are at it, each on a core of its own.
pub fn map_get_by_two(work: &Work) -> Result<f64> {
    let map = SharedMap::<u64, u64>::new()?;
    fill(&map)?;
    let (near, far) = work.cores()?;
    let state = RawValue::new(0u32)?;
    let read = |map: SharedMap<u64, u64>, state: RawValue<u32>, core: usize| {
        measure::pin(core).map_err(|error| error.to_string())?;
        state.store(1, Ordering::SeqCst);
        read_until(&map, || state.load(Ordering::Relaxed) == 2).map_err(|error| error.to_string())
    };
    let child = Process::start(read, (map.clone(), state.clone(), far))?;
    measure::pin(near)?;
    while state.load(Ordering::SeqCst) == 0 {
        thread::yield_now();
    }
    // Two at a time: an item of ours stands for two.
    let mut keys = Keys(88_172_645_463_325_252);
    let seconds = measure::seconds_each(work.budget, BATCH, |n| gets(&map, &mut keys, n))?;
    state.store(2, Ordering::SeqCst);
    if child.result()?? == 0 {
        return Err("the other reader has read nothing".into());
    }
    Ok(seconds / 2.0)
}

pub fn dashmap_get_by_two(work: &Work) -> Result<f64> {
    let map = Arc::new(DashMap::new());
    fill(&*map)?;
    let (near, far) = work.cores()?;
    let stop = Arc::new(AtomicBool::new(false));
    let (theirs, stopped) = (Arc::clone(&map), Arc::clone(&stop));
    let reader = thread::spawn(move || -> Result<u64> {
        measure::pin(far)?;
        read_until(&*theirs, || stopped.load(Ordering::Relaxed))
    });
    measure::pin(near)?;
    let mut keys = Keys(88_172_645_463_325_252);
    let seconds = measure::seconds_each(work.budget, BATCH, |n| gets(&*map, &mut keys, n))?;
    stop.store(true, Ordering::Relaxed);
    if reader.join().map_err(|_| "the reader panicked")?? == 0 {
        return Err("the other reader has read nothing".into());
    }
    Ok(seconds / 2.0)
}

/// Seconds an operation takes on a dict of CPython's manager; the program prints them.
fn manager(work: &Work, operation: &str) -> Result<f64> {
    let program = format!(
        "
import multiprocessing, time
if __name__ == '__main__':
    with multiprocessing.Manager() as manager:
        d = manager.dict()
        d.update({{n: n + 1 for n in range({ENTRIES})}})
        n, started = 0, time.perf_counter()
        while time.perf_counter() - started < {budget}:
            for _ in range(100):
                {operation}
                n += 1
        print((time.perf_counter() - started) / n)
",
        budget = work.budget.as_secs_f64()
    );
    let output = Command::new("python3").args(["-c", &program]).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
}

pub fn manager_get(work: &Work) -> Result<f64> {
    manager(work, &format!("d[n * 7919 % {ENTRIES}]"))
}

pub fn manager_insert(work: &Work) -> Result<f64> {
    manager(work, &format!("d[n * 7919 % {ENTRIES}] = n"))
}

/// The most memories made in one batch.
const MEMORIES: u64 = 10_000;

fn touch(bytes: &mut [u8]) {
    for page in bytes.chunks_mut(4096) {
        page[0] = 1;
    }
    black_box(bytes);
}

/// Made, mapped, each page written to, and let go of.
pub fn memory(work: &Work) -> Result<f64> {
    measure::seconds_each(work.budget, MEMORIES, |n_items| {
        for _ in 0..n_items {
            let mut memory = SharedMemory::new(work.size_bytes)?;
            // SAFETY: nobody else has this memory.
            touch(unsafe { memory.as_mut_slice() });
        }
        Ok(())
    })
}

/// The same with a name.
pub fn named_memory(work: &Work) -> Result<f64> {
    let name = measure::scratch_name();
    measure::seconds_each(work.budget, MEMORIES, |n_items| {
        for _ in 0..n_items {
            let mut memory = SharedMemory::create(&name, work.size_bytes)?;
            // SAFETY: nobody else has this memory.
            touch(unsafe { memory.as_mut_slice() });
        }
        Ok(())
    })
}

/// `shm_open`, `ftruncate`, `mmap`, and all of it back. It reserves nothing.
pub fn bare_named(work: &Work) -> Result<f64> {
    let name = std::ffi::CString::new(format!("/{}", measure::scratch_name()))?;
    let failed = || std::io::Error::last_os_error();
    measure::seconds_each(work.budget, MEMORIES, |n_items| {
        for _ in 0..n_items {
            let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
            // SAFETY: the name is a string that ends in a zero.
            let fd = unsafe { libc::shm_open(name.as_ptr(), flags, 0o600) };
            if fd < 0 {
                return Err(failed().into());
            }
            // SAFETY: the descriptor is open.
            if unsafe { libc::ftruncate(fd, work.size_bytes as libc::off_t) } != 0 {
                return Err(failed().into());
            }
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a new mapping at an address of the kernel's choice.
            let at = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    work.size_bytes,
                    protection,
                    libc::MAP_SHARED,
                    fd,
                    0,
                )
            };
            if at == libc::MAP_FAILED {
                return Err(failed().into());
            }
            // SAFETY: the mapping is that long, and nobody else has it.
            touch(unsafe { std::slice::from_raw_parts_mut(at.cast(), work.size_bytes) });
            // SAFETY: it is not used any more.
            unsafe { libc::munmap(at, work.size_bytes) };
            // SAFETY: as the name above.
            unsafe { libc::shm_unlink(name.as_ptr()) };
            // SAFETY: the descriptor is open, and this process's own.
            unsafe { libc::close(fd) };
        }
        Ok(())
    })
}
