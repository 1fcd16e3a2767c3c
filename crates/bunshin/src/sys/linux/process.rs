//! Processes: fork, this program started again, pidfds, signals, exit.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::{OnceLock, PoisonError, RwLock};

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

pub(crate) use rustix::process::Signal as Sig;

/// The environment variable that turns a started program into a child:
/// `<role>:<descriptor>:<parent's pid>`.
pub(crate) const START_VARIABLE: &str = "BUNSHIN_START";

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Exited(i32),
    Signalled(i32),
}

/// What the system says of a process that has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) how: How,
    /// Bytes of memory that it had at its peak, or one of the children that it has collected.
    pub(crate) peak_memory: u64,
}

/// A child of this process: its id, and a handle that is readable once it has ended.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
}

/// What an interpreter is to be told of forks that it does not make itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ForkHooks {
    pub(crate) before: fn(),
    pub(crate) in_parent: fn(),
    pub(crate) in_child: fn(),
}

static HOOKS: OnceLock<ForkHooks> = OnceLock::new();

/// Has each fork call these; the first ones given stay.
pub(crate) fn set_fork_hooks(hooks: ForkHooks) {
    let _ = HOOKS.set(hooks);
}

/// What [`set_fork_hooks`] was given.
pub(crate) fn fork_hooks() -> Option<&'static ForkHooks> {
    HOOKS.get()
}

/// Whether this program is an interpreter, which knows what a fork does to its threads.
pub(crate) fn is_hosted() -> bool {
    HOOKS.get().is_some()
}

/// Copies this process. `Ok(None)` is the child.
///
/// # Safety
/// In the child of a process with several threads, only what `signal-safety(7)`
/// lists may be done.
pub(crate) unsafe fn fork() -> io::Result<Option<Started>> {
    super::thread::watch_forks();
    let hooks = HOOKS.get();
    if let Some(hooks) = hooks {
        (hooks.before)();
    }
    // SAFETY: the caller vouches for the threads.
    let pid = unsafe { libc::fork() };
    let error = (pid < 0).then(io::Error::last_os_error);
    match (hooks, pid) {
        (Some(hooks), 0) => (hooks.in_child)(),
        (Some(hooks), _) => (hooks.in_parent)(),
        (None, _) => {}
    }
    match (error, pid) {
        (Some(error), _) => Err(error),
        (None, 0) => Ok(None),
        (None, pid) => open(pid).map(Some),
    }
}

fn open(pid: i32) -> io::Result<Started> {
    let id = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    // The child has not been waited for, so its id is not anyone else's yet.
    match rustix::process::pidfd_open(id, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Started {
            pid: pid as u32,
            pidfd,
        }),
        Err(error) => {
            let _ = rustix::process::kill_process(id, Signal::KILL);
            let _ = rustix::process::waitpid(Some(id), rustix::process::WaitOptions::empty());
            Err(error.into())
        }
    }
}

/// Opens a child of this process that another one has made for it. If that is not possible,
/// the child is ended.
pub(crate) fn adopt(pid: u32) -> io::Result<Started> {
    open(i32::try_from(pid).map_err(|_| io::ErrorKind::InvalidData)?)
}

/// Ends a child of this process that nobody will use, and collects it; nothing if `pid` is no
/// child of this process.
pub(crate) fn end_unused(pid: u32) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return;
    };
    // Only for a child that has not been waited for is it certain whose number this is.
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    if rustix::process::waitid(WaitId::Pid(pid), look).is_ok() {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
        let _ = rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
    }
}

/// What is started instead of this program again, where the program is an interpreter.
///
/// It is read by forked copies as well, whoever was reading it at the fork.
static COMMAND: RwLock<Vec<CString>> = RwLock::new(Vec::new());

/// Has children be started by that command.
pub(crate) fn set_command(words: Vec<OsString>) -> io::Result<()> {
    let words = c_strings(words.into_iter().map(OsStringExt::into_vec))?;
    *COMMAND.write().unwrap_or_else(PoisonError::into_inner) = words;
    Ok(())
}

/// What [`start_apart`] starts in place of that.
static APART: RwLock<Vec<CString>> = RwLock::new(Vec::new());

/// Has what lives apart from this process be started by that command.
pub(crate) fn set_apart(words: Vec<OsString>) -> io::Result<()> {
    let words = c_strings(words.into_iter().map(OsStringExt::into_vec))?;
    *APART.write().unwrap_or_else(PoisonError::into_inner) = words;
    Ok(())
}

/// Starts this very program again, with `inherited` open under the same number and
/// the start variable set. The parent's heap does not slow it (`posix_spawn(3)`).
pub(crate) fn start_self(role: &str, inherited: BorrowedFd<'_>) -> io::Result<Started> {
    start(role, inherited, 0, &COMMAND)
}

/// As [`start_self`], in a session of its own from its first moment on: what ends this
/// process's group does not end that one.
pub(crate) fn start_apart(role: &str, inherited: BorrowedFd<'_>) -> io::Result<Started> {
    start(role, inherited, POSIX_SPAWN_SETSID, &APART)
}

/// `spawn.h` of glibc 2.26 and later.
const POSIX_SPAWN_SETSID: libc::c_short = 0x80;

fn start(
    role: &str,
    inherited: BorrowedFd<'_>,
    flags: libc::c_short,
    command: &RwLock<Vec<CString>>,
) -> io::Result<Started> {
    let variable = format!(
        "{START_VARIABLE}={role}:{}:{}",
        inherited.as_raw_fd(),
        std::process::id()
    );
    let mut arguments = command
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let program = arguments
        .first()
        .cloned()
        .unwrap_or_else(|| c"/proc/self/exe".to_owned());
    let is_of_front = !arguments.is_empty();
    if !is_of_front {
        arguments = c_strings(std::env::args_os().map(OsStringExt::into_vec))?;
    }
    let environment = c_strings(
        std::env::vars_os()
            .filter(|(name, _)| name != OsStr::new(START_VARIABLE))
            .map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat())
            .chain([variable.into_bytes()]),
    )?;
    let argv = pointers(&arguments);
    let envp = pointers(&environment);

    let mut actions = Actions::new()?;
    actions.keep(inherited)?;
    let mut attributes = Attributes::new()?;
    attributes.unblock_signals(flags, is_of_front)?;
    let mut pid: libc::pid_t = 0;
    // SAFETY: all pointers are to live, null-terminated arrays of C strings and to
    // initialised action and attribute objects.
    let rc = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            program.as_ptr(),
            &raw const actions.0,
            &raw const attributes.0,
            argv.as_ptr(),
            envp.as_ptr(),
        )
    };
    check(rc)?;
    open(pid)
}

fn c_strings(items: impl Iterator<Item = Vec<u8>>) -> io::Result<Vec<CString>> {
    items
        .map(|item| CString::new(item).map_err(io::Error::from))
        .collect()
}

fn pointers(strings: &[CString]) -> Vec<*mut libc::c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr().cast_mut())
        .chain([std::ptr::null_mut()])
        .collect()
}

fn check(rc: libc::c_int) -> io::Result<()> {
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(rc))
    }
}

struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new() -> io::Result<Self> {
        let mut actions = std::mem::MaybeUninit::uninit();
        // SAFETY: the call initialises the object it is given.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        // SAFETY: it has just been initialised.
        Ok(Self(unsafe { actions.assume_init() }))
    }

    /// Keeps a descriptor open in the child: "duplicating" it onto itself clears its
    /// close-on-exec flag there (POSIX.1-2024; glibc 2.29).
    fn keep(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let fd = fd.as_raw_fd();
        // SAFETY: the object is initialised.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut self.0, fd, fd) })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: the object is initialised and not used again.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new() -> io::Result<Self> {
        let mut attributes = std::mem::MaybeUninit::uninit();
        // SAFETY: the call initialises the object it is given.
        check(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        // SAFETY: it has just been initialised.
        Ok(Self(unsafe { attributes.assume_init() }))
    }

    /// The child starts with no signal blocked, whichever thread starts it, and with more flags.
    ///
    /// Interrupts `wait` until an interpreter has begun, which is the one to unblock them.
    fn unblock_signals(&mut self, flags: libc::c_short, wait: bool) -> io::Result<()> {
        let mut blocked = std::mem::MaybeUninit::uninit();
        // SAFETY: the call initialises the set.
        unsafe { libc::sigemptyset(blocked.as_mut_ptr()) };
        if wait {
            // SAFETY: the set is initialised.
            unsafe { libc::sigaddset(blocked.as_mut_ptr(), libc::SIGINT) };
        }
        // SAFETY: both objects are initialised.
        check(unsafe { libc::posix_spawnattr_setsigmask(&raw mut self.0, blocked.as_ptr()) })?;
        let flags = flags | libc::POSIX_SPAWN_SETSIGMASK as libc::c_short;
        // SAFETY: the object is initialised.
        check(unsafe { libc::posix_spawnattr_setflags(&raw mut self.0, flags) })
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: the object is initialised and not used again.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}

/// Takes the start variable out of the environment: role, descriptor, parent's pid.
///
/// To be called before `main`, while no other thread can read the environment.
pub(crate) fn take_start_variable() -> Option<(String, OwnedFd, u32)> {
    let value = std::env::var(START_VARIABLE).ok()?;
    #[allow(clippy::disallowed_methods)]
    // SAFETY: this runs before `main`: there is one thread.
    unsafe {
        std::env::remove_var(START_VARIABLE)
    };
    let mut fields = value.split(':');
    let role = fields.next()?.to_owned();
    let fd: i32 = fields.next()?.parse().ok().filter(|fd| *fd > 2)?;
    let parent = fields.next()?.parse().ok()?;
    // SAFETY: fcntl on a number that may not be open fails, and does nothing else.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return None;
    }
    // SAFETY: the parent left this descriptor open for us alone, and it is open.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    super::socket::is_stream(&fd).then_some((role, fd, parent))
}

/// Ends this process together with the thread that started it; `false` if that is
/// over already, as the parent is not `parent` any more.
pub(crate) fn die_with(parent: u32) -> bool {
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    parent_id() == parent
}

/// The process that this one is a child of; 0 if that cannot be seen from here.
pub(crate) fn parent_id() -> u32 {
    rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get() as u32)
}

/// A handle that becomes readable when the parent has ended; `None` if it has, as the parent is
/// not `parent` any more.
pub(crate) fn watch_parent(parent: u32) -> io::Result<Option<OwnedFd>> {
    let handle = watch(parent);
    // Asked after the handle was opened: if this still is the parent, the handle is on it.
    if parent_id() == parent {
        handle.map(Some)
    } else {
        Ok(None)
    }
}

/// A handle that becomes readable when process `pid` has ended.
pub(crate) fn watch(pid: u32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid as i32).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Whether there is a process of that number, which may have ended and not been collected.
pub(crate) fn is_there(pid: u32) -> bool {
    let path = format!("/proc/{pid}/stat");
    !matches!(rustix::fs::stat(path), Err(rustix::io::Errno::NOENT))
}

/// When a process began, in ticks of the kernel; `None` if it has ended, collected or not.
pub(crate) fn began(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may contain more of them.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}

/// Collects a child's end; `None` if it still runs and `block` is false.
pub(crate) fn wait(pidfd: BorrowedFd<'_>, block: bool) -> io::Result<Option<Ended>> {
    let options = libc::WEXITED | if block { 0 } else { libc::WNOHANG };
    // SAFETY: all zero is a valid siginfo.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: all zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // The C library's form leaves out the last argument, what the child has used.
        // SAFETY: the kernel writes to two locals that are as large as it takes them to be.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_waitid,
                libc::P_PIDFD,
                pidfd.as_raw_fd(),
                &raw mut info,
                options,
                &raw mut usage,
            )
        };
        if rc == 0 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: the kernel has filled it in, or left it all zero.
    if unsafe { info.si_pid() } == 0 {
        return Ok(None);
    }
    // SAFETY: it is about a child that has ended.
    let status = unsafe { info.si_status() };
    let how = match info.si_code {
        libc::CLD_EXITED => How::Exited(status),
        libc::CLD_KILLED | libc::CLD_DUMPED => How::Signalled(status),
        _ => {
            return Err(io::Error::other(
                "a wait status that is neither exit nor signal",
            ));
        }
    };
    Ok(Some(Ended {
        how,
        peak_memory: u64::try_from(usage.ru_maxrss).unwrap_or(0) << 10,
    }))
}

/// Sends a signal to the process behind `pidfd`; it is no error if that has ended.
pub(crate) fn signal(pidfd: BorrowedFd<'_>, signal: Sig) -> io::Result<()> {
    match rustix::process::pidfd_send_signal(pidfd, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Handles to all processes below a child of this process that the system can list
/// (`proc_pid_children(5)`).
pub(crate) fn descendants(pid: u32) -> Vec<OwnedFd> {
    let mut found: Vec<OwnedFd> = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        // A tree that grows while it is looked at is not followed for ever.
        if found.len() > 4096 {
            break;
        }
        let Ok(threads) = std::fs::read_dir(format!("/proc/{parent}/task")) else {
            continue;
        };
        for thread in threads.flatten() {
            let children = std::fs::read_to_string(thread.path().join("children"));
            for child in children.unwrap_or_default().split_whitespace() {
                let Some(id) = child.parse().ok().and_then(Pid::from_raw) else {
                    continue;
                };
                let Ok(pidfd) = rustix::process::pidfd_open(id, PidfdFlags::empty()) else {
                    continue;
                };
                // The number may be another process's by now: then its parent is another too.
                let stat = std::fs::read_to_string(format!("/proc/{child}/stat"));
                let stat = stat.unwrap_or_default();
                let after = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
                if after.split(' ').nth(1) == Some(&parent.to_string()) {
                    found.push(pidfd);
                    parents.push(id.as_raw_nonzero().get() as u32);
                }
            }
        }
    }
    found
}

/// The name of a signal, as `signal(7)` spells it.
pub(crate) fn signal_name(signal: i32) -> Option<&'static str> {
    const NAMES: &[(i32, &str)] = &[
        (libc::SIGHUP, "SIGHUP"),
        (libc::SIGINT, "SIGINT"),
        (libc::SIGQUIT, "SIGQUIT"),
        (libc::SIGILL, "SIGILL"),
        (libc::SIGTRAP, "SIGTRAP"),
        (libc::SIGABRT, "SIGABRT"),
        (libc::SIGBUS, "SIGBUS"),
        (libc::SIGFPE, "SIGFPE"),
        (libc::SIGKILL, "SIGKILL"),
        (libc::SIGUSR1, "SIGUSR1"),
        (libc::SIGSEGV, "SIGSEGV"),
        (libc::SIGUSR2, "SIGUSR2"),
        (libc::SIGPIPE, "SIGPIPE"),
        (libc::SIGALRM, "SIGALRM"),
        (libc::SIGTERM, "SIGTERM"),
        (libc::SIGXCPU, "SIGXCPU"),
        (libc::SIGXFSZ, "SIGXFSZ"),
        (libc::SIGSYS, "SIGSYS"),
    ];
    NAMES
        .iter()
        .find(|(number, _)| *number == signal)
        .map(|(_, name)| *name)
}

/// Names the calling thread, so that `ps` and `top` show it (15 bytes of it).
pub(crate) fn set_thread_name(name: &str) {
    // On the stack: in a child that was just forked, each page that is touched costs a fault.
    let mut cut = [0u8; 16];
    for (to, byte) in cut[..15]
        .iter_mut()
        .zip(name.bytes().filter(|byte| *byte != 0))
    {
        *to = byte;
    }
    if let Ok(name) = CStr::from_bytes_until_nul(&cut) {
        let _ = rustix::thread::set_name(name);
    }
}

/// The signals that a thread has blocked.
#[derive(Clone, Copy)]
pub(crate) struct Blocked(libc::sigset_t);

impl Blocked {
    /// These, but for the interrupts.
    pub(crate) fn without_interrupts(mut self) -> Self {
        // SAFETY: the set is one that the system gave.
        unsafe { libc::sigdelset(&raw mut self.0, libc::SIGINT) };
        self
    }
}

/// Has this process, of one thread, not end when the terminal interrupts it; says what was
/// blocked before.
///
/// Blocked and not ignored: an interrupt of a child that has not unblocked them yet waits for
/// that, and is not lost.
pub(crate) fn block_interrupts() -> Blocked {
    // SAFETY: all zero is a valid set.
    let mut interrupts: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is a local.
    unsafe { libc::sigemptyset(&raw mut interrupts) };
    // SAFETY: as above.
    unsafe { libc::sigaddset(&raw mut interrupts, libc::SIGINT) };
    let mut before = interrupts;
    // SAFETY: both sets are locals.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const interrupts, &raw mut before) };
    Blocked(before)
}

/// Takes leave of the signals, the standard streams and the working directory of the process
/// that started this one, which is to outlive it.
pub(crate) fn step_aside() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        // SAFETY: sets a disposition, no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    for stream in 0..3 {
        neutralize(stream);
    }
    let _ = rustix::process::chdir("/");
}

/// Takes [`block_interrupts`] back.
pub(crate) fn restore_blocked(before: &Blocked) {
    // SAFETY: the set is one that the system gave; nothing is wanted back.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before.0, std::ptr::null_mut()) };
}

/// Ends this process at once: no exit handlers, no destructors.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: always allowed.
    unsafe { libc::_exit(code) }
}

/// Has `handler` called when this process ends in an orderly way.
pub(crate) fn at_exit(handler: extern "C" fn()) {
    // SAFETY: the handler is a plain function of this program.
    unsafe { libc::atexit(handler) };
}

/// Closes a descriptor whose owner, in the memory that a forked child has inherited, will
/// never be used or dropped in this child.
pub(crate) fn close_inherited(fd: i32) {
    // SAFETY: the caller says that nobody in this process uses the number any more.
    unsafe { libc::close(fd) };
}

/// Sends a byte over a socket that some value of this process owns, if there is room.
pub(crate) fn ring_inherited(fd: i32, byte: u8) {
    // SAFETY: the buffer is one byte that lives through the call; a closed descriptor is an error.
    unsafe {
        libc::send(
            fd,
            (&raw const byte).cast(),
            1,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
}

/// Closes a descriptor that some value of this process still believes to own, and
/// keeps its number taken, so that the value's own close does no harm.
pub(crate) fn neutralize(fd: i32) {
    // SAFETY: opening a constant path.
    let null = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    if null >= 0 {
        // SAFETY: replaces one descriptor of this process by another.
        unsafe { libc::dup3(null, fd, libc::O_CLOEXEC) };
        // SAFETY: it was opened above.
        unsafe { libc::close(null) };
    }
}
