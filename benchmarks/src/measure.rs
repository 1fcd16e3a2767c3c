//! Clocks, cores and the sampling loop: what every measurement is made of.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::mem;
use std::time::{Duration, Instant};

/// What a measurement gives back; any error becomes the row's note.
pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The environment variable that carries [`scratch_name`].
pub const SCRATCH_VARIABLE: &str = "BUNSHIN_BENCH_SCRATCH";

/// A name that is unique to this measurement. Whatever a peer leaves in
/// `/dev/shm` or the temporary folder under this name, the runner removes.
pub fn scratch_name() -> String {
    std::env::var(SCRATCH_VARIABLE)
        .unwrap_or_else(|_| format!("bunshin-bench-{}", std::process::id()))
}

/// Confines the calling process to one core.
pub fn pin(core: usize) -> Result<()> {
    // SAFETY: a CPU set is plain bits, for which zero is a valid value.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: `core` comes from the kernel's own set, so it is within the bits of `set`.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: the pointer and the size describe `set`, which outlives the call.
    let status = unsafe { libc::sched_setaffinity(0, mem::size_of_val(&set), &set) };
    if status == 0 {
        Ok(())
    } else {
        Err(format!("pin to core {core}: {}", std::io::Error::last_os_error()).into())
    }
}

/// The cores this process may run on.
fn usable_cores() -> Result<Vec<usize>> {
    // SAFETY: a CPU set is plain bits, for which zero is a valid value.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the pointer and the size describe `set`, which outlives the call.
    let status = unsafe { libc::sched_getaffinity(0, mem::size_of_val(&set), &mut set) };
    if status != 0 {
        return Err(format!("usable cores: {}", std::io::Error::last_os_error()).into());
    }
    Ok((0..libc::CPU_SETSIZE as usize)
        // SAFETY: `core` is below CPU_SETSIZE, the number of bits in `set`.
        .filter(|&core| unsafe { libc::CPU_ISSET(core, &set) })
        .collect())
}

/// The hardware threads that share a physical core with `core`, itself included.
fn siblings(core: usize) -> BTreeSet<usize> {
    let path = format!("/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list");
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut found = BTreeSet::from([core]);
    for part in text.trim().split(',') {
        let mut ends = part.split('-').filter_map(|end| end.parse::<usize>().ok());
        if let Some(first) = ends.next() {
            found.extend(first..=ends.next().unwrap_or(first));
        }
    }
    found
}

/// Two cores for two processes: on different physical cores where there are such.
pub fn two_cores() -> Result<(usize, usize)> {
    let usable = usable_cores()?;
    let near = *usable.first().ok_or("no usable core")?;
    let shared = siblings(near);
    let far = usable
        .iter()
        .copied()
        .find(|core| !shared.contains(core))
        .or_else(|| usable.get(1).copied())
        .ok_or("this row needs two cores, one is usable")?;
    Ok((near, far))
}

/// One core for both processes.
pub fn one_core() -> Result<(usize, usize)> {
    let usable = usable_cores()?;
    let core = *usable.first().ok_or("no usable core")?;
    Ok((core, core))
}

/// The middle value; the mean of the two middle ones for an even count.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

/// Fewest samples behind a printed number, however slow a sample is.
const MIN_SAMPLES: usize = 3;

/// Seconds one item takes, as the median over batches of `batch(n_items)`.
///
/// Batches grow until one takes a twentieth of `budget` (these also warm the
/// caches up and do not count); then batches of that size fill the budget.
/// No batch is larger than `max_items`.
pub fn seconds_each(
    budget: Duration,
    max_items: u64,
    mut batch: impl FnMut(u64) -> Result<()>,
) -> Result<f64> {
    let mut timed = |n_items: u64| -> Result<Duration> {
        let started = Instant::now();
        batch(n_items)?;
        Ok(started.elapsed())
    };
    let target = budget / 20;
    let mut n_items = 1;
    loop {
        let took = timed(n_items)?;
        if took >= target || n_items >= max_items {
            break;
        }
        let wanted = target.as_secs_f64() / took.as_secs_f64().max(1e-9) * 1.1;
        n_items = (n_items as f64 * wanted.clamp(1.2, 8.0)).ceil() as u64;
        n_items = n_items.min(max_items);
    }
    let mut samples = Vec::new();
    let started = Instant::now();
    while samples.len() < MIN_SAMPLES || started.elapsed() < budget {
        samples.push(timed(n_items)?.as_secs_f64() / n_items as f64);
    }
    Ok(median(&mut samples))
}

/// The median of `sample()`, whose own clock says how long each took.
///
/// The first sample counts only if `cold`; then it is the only one.
pub fn median_seconds(
    budget: Duration,
    cold: bool,
    mut sample: impl FnMut() -> Result<Duration>,
) -> Result<f64> {
    let first = sample()?;
    if cold {
        return Ok(first.as_secs_f64());
    }
    let mut samples = Vec::new();
    let started = Instant::now();
    while samples.len() < MIN_SAMPLES || started.elapsed() < budget {
        samples.push(sample()?.as_secs_f64());
    }
    Ok(median(&mut samples))
}
