//! Start method `fork`, the raw call, and scopes whose closures may capture.

#![allow(unsafe_code)]

use std::io::Write;
use std::marker::PhantomData;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::bootstrap::{self, Exit};
use super::builder::ProcessBuilder;
use super::current::Identity;
use super::handle::{Child, Process};
use super::outcome::TaskError;
use super::start_method::StartMethod;
use super::{launcher, panic, target};
use crate::codec::outcome::Call;
use crate::error::{Error, ErrorKind, Result};
use crate::shm::heap;
use crate::sys::process::{self, Started};
use crate::sys::{leases, socket, thread};
use crate::transport::{Patience, channel, heirs};

/// Runs before `main`, in the order of the linker: turns a started program into a child.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = {
    extern "C" fn before_main() {
        // Almost always there is nothing to do; then nothing is allocated either.
        if std::env::var_os(process::START_VARIABLE).is_some() {
            bootstrap::init();
        }
    }
    before_main
};

/// How many threads this process has.
pub(super) fn count_threads() -> Result<usize> {
    let mut count = 0;
    // A thread that has been joined may be listed for a moment longer.
    for _ in 0..20 {
        count = thread::count()
            .map_err(|error| Error::os("count the threads of this process", error))?;
        if count == 1 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Ok(count)
}

/// Stops what this crate does in threads of its own and can do without for a moment.
fn hold_still() {
    #[cfg(feature = "tracing")]
    crate::log::pause();
}

/// Takes [`hold_still`] back.
fn go_on() {
    #[cfg(feature = "tracing")]
    crate::log::resume();
}

/// Refuses to fork while there are other threads.
fn check_threads() -> Result<()> {
    hold_still();
    let count = count_threads()?;
    if count == 1 {
        return Ok(());
    }
    // Refused: what had to stop for a fork goes on.
    go_on();
    Err(Error::new(
        ErrorKind::Threads,
        format!(
            "fork a process with {count} threads: locks that the others hold would stay locked in the child; \
             use the start method forkserver or spawn, or fork before other threads are started"
        ),
    ))
}

/// Forks; the child never returns from here. What it uses of the ends of pipes that it `inherits`
/// is its own.
///
/// # Safety
/// As for [`fork_unchecked`].
unsafe fn start(work: impl FnOnce() -> i32, inherits: bool) -> Result<Started> {
    let parent = std::process::id();
    if inherits {
        heirs::begin_fork(false);
    }
    hold_still();
    // Or else both would print what is still in the buffer.
    let _ = std::io::stdout().flush();
    // SAFETY: the caller vouches for the threads.
    match unsafe { process::fork() } {
        Err(error) => {
            go_on();
            heirs::end_fork(None);
            Err(Error::os("fork", error))
        }
        Ok(Some(started)) => {
            go_on();
            heirs::end_fork(Some(started.pid));
            thread::leave_to_child(work, started.pid);
            Ok(started)
        }
        Ok(None) => {
            if !process::die_with(parent) {
                process::exit_now(1);
            }
            // `work` may panic in a destructor; the child must end here all the same.
            let code = panic::catch(false, work).unwrap_or(1);
            bootstrap::leave(code, Exit::Now)
        }
    }
}

/// Starts a child that runs an entry on arguments it has inherited.
pub(crate) fn start_forked(
    entry: u64,
    identity: Identity,
    control: &OwnedFd,
    theirs: OwnedFd,
    may_have_threads: bool,
    call: impl FnOnce() -> Call + Send + 'static,
) -> Result<Started> {
    use std::os::fd::AsRawFd;
    if !may_have_threads && !process::is_hosted() {
        check_threads()?;
    }
    let entry = target::find(entry);
    let control = control.as_raw_fd();
    let work = move || {
        // The parent's end must not stay open here, or the child would not learn of its death.
        process::close_inherited(control);
        // An interpreter's child goes on with everything it has.
        if !process::is_hosted() {
            channel::abandon_inherited();
        }
        let mut call = call();
        bootstrap::settle_in(identity, None);
        if let Some(entry) = entry {
            entry(&mut call);
        }
        bootstrap::send(&theirs, &mut call)
    };
    if process::is_hosted() {
        // By a thread that the child may be ended with.
        // SAFETY: the interpreter has been told, and holds its locks over the fork.
        return launcher::run(move || unsafe { start(work, false) });
    }
    // SAFETY: there are no other threads, or the caller of `allow_fork_with_threads` vouches
    // for them.
    unsafe { start(work, false) }
}

impl ProcessBuilder {
    /// Lets the start method `Fork` copy a process that has other threads.
    ///
    /// # Safety
    /// Until it ends, the child does only what `signal-safety(7)` lists, or the caller knows
    /// that no other thread holds a lock at this moment, of the allocator for example, that
    /// the child will want.
    ///
    /// # Examples
    /// ```
    /// use bunshin::{Process, StartMethod};
    ///
    /// let builder = Process::builder().start_method(StartMethod::Fork);
    /// // SAFETY: the child only adds, and the allocator of the C library can be used after a fork.
    /// let builder = unsafe { builder.allow_fork_with_threads() };
    /// assert_eq!(builder.start(|a: u32, b: u32| a + b, (1, 2))?.result()?, 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub unsafe fn allow_fork_with_threads(mut self) -> Self {
        self.may_fork_threads = true;
        self
    }
}

/// What [`fork`] returns: once in the parent, and once in the child.
///
/// # Examples
/// ```
/// # // Doc tests have threads, so that the fork happens in a child that has none.
/// # bunshin::Process::start(|| {
/// use bunshin::Fork;
///
/// match bunshin::fork().expect("there is one thread") {
///     Fork::Parent(child) => assert_eq!(child.join().expect("it is ours").code(), Some(3)),
///     Fork::Child => std::process::exit(3),
/// }
/// # }, ())?.result()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub enum Fork {
    /// This is the parent; the child runs too.
    Parent(Process<()>),
    /// This is the child.
    Child,
}

/// Copies this process, as the system call does.
///
/// It returns twice: in the parent with a handle on the child, and in the child, whose
/// memory is a copy. What the parent had not printed yet is printed first. The child goes
/// on from here with everything the parent has; it is not ended with the parent. For a
/// child that runs one function, use [`Process::start`] or [`scope`].
///
/// # Errors
/// `Threads` if this process has other threads; `Os` if the system gives no further process.
///
/// # Source
/// `fork(2)`; CPython's `os.fork`.
///
/// # Examples
/// ```no_run
/// match bunshin::fork()? {
///     bunshin::Fork::Parent(child) => assert!(child.join()?.success()),
///     bunshin::Fork::Child => println!("the child is {}", std::process::id()),
/// }
/// # Ok::<(), bunshin::Error>(())
/// ```
pub fn fork() -> Result<Fork> {
    check_threads()?;
    // SAFETY: this is the only thread.
    unsafe { fork_unchecked() }
}

/// [`fork`], also while there are other threads.
///
/// # Errors
/// `Os` if the system gives no further process.
///
/// # Safety
/// In the child there is only the calling thread, and locks that others held stay locked
/// for ever. Until it ends or executes another program, it does only what
/// `signal-safety(7)` lists, or the caller knows that no such lock is wanted.
///
/// # Examples
/// ```
/// // SAFETY: the child does nothing but end.
/// match unsafe { bunshin::fork_unchecked() }? {
///     bunshin::Fork::Parent(child) => assert!(child.join()?.success()),
///     bunshin::Fork::Child => std::process::exit(0),
/// }
/// # Ok::<(), bunshin::Error>(())
/// ```
pub unsafe fn fork_unchecked() -> Result<Fork> {
    hold_still();
    let _ = std::io::stdout().flush();
    // The child goes on with everything: shared memory that this process holds is its too.
    heap::begin_copy();
    channel::count_for_copy();
    heirs::begin_fork(true);
    let identity = Identity::of_child(None, StartMethod::Fork, false);
    // SAFETY: the caller vouches for the threads.
    match unsafe { process::fork() } {
        Ok(Some(started)) => {
            leases::end();
            go_on();
            heirs::end_fork(Some(started.pid));
            let child = Child::register(copy_name(started.pid), started, false);
            Ok(Fork::Parent(Process::new(child, None)))
        }
        Ok(None) => {
            leases::end_in_copy();
            channel::were_counted();
            identity.named(copy_name(std::process::id())).adopt();
            Ok(Fork::Child)
        }
        Err(error) => {
            leases::end();
            go_on();
            heirs::end_fork(None);
            channel::uncount_for_copy();
            Err(Error::os("fork", error))
        }
    }
}

/// What a raw copy of this process is called.
fn copy_name(pid: u32) -> String {
    format!("Fork-{pid}")
}

/// Runs `work`, which may fork children whose closures use what is around them.
///
/// Like [`std::thread::scope`], for processes: the children are joined when the scope ends.
/// What they use is a copy, as of the moment of the fork; only their results come back,
/// and what they write to shared memory, such as [`Value`](crate::Value). If `work` panics,
/// the children are killed.
///
/// # Panics
/// If a child that was not joined by `work` ended otherwise than with success.
///
/// # Examples
/// ```
/// # // Doc tests have threads, so that the fork happens in a child that has none.
/// # bunshin::Process::start(|| {
/// let words = vec!["some", "borrowed", "words"];
/// let lengths = bunshin::scope(|scope| {
///     let children: Vec<_> = words.iter().map(|word| scope.spawn(|| word.len())).collect();
///     children.into_iter().map(|child| child?.result().map_err(Into::into)).collect::<Result<Vec<_>, Box<dyn std::error::Error>>>()
/// }).unwrap();
/// assert_eq!(lengths, [4, 8, 5]);
/// # }, ())?.result()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn scope<'env, T>(work: impl for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> T) -> T {
    let scope = Scope {
        children: Mutex::new(Vec::new()),
        scope: PhantomData,
        env: PhantomData,
    };
    struct KillOnPanic<'a>(&'a Mutex<Vec<Arc<Child>>>);
    impl Drop for KillOnPanic<'_> {
        fn drop(&mut self) {
            for child in self
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .drain(..)
            {
                child.destroy();
            }
        }
    }
    let guard = KillOnPanic(&scope.children);
    let result = work(&scope);
    let children = std::mem::take(
        &mut *scope
            .children
            .lock()
            .unwrap_or_else(PoisonError::into_inner),
    );
    drop(guard);
    let mut failed = None;
    for child in children {
        let was_joined = Arc::strong_count(&child) == 1 && child.is_collected();
        match child.wait(Patience::Forever) {
            Ok(Some(status)) if status.success() || was_joined => {}
            Ok(Some(status)) => failed = Some(format!("{} ended with {status}", child.name())),
            Ok(None) => {}
            Err(error) => failed = Some(error.to_string()),
        }
    }
    assert!(
        failed.is_none(),
        "a process of a scope failed: {}",
        failed.unwrap_or_default()
    );
    result
}

/// Where closures that capture are forked; see [`scope`].
///
/// # Examples
/// ```
/// # // Doc tests have threads, so that the fork happens in a child that has none.
/// # bunshin::Process::start(|| {
/// let word = String::from("borrowed");
/// bunshin::scope(|scope| {
///     let child = scope.spawn(|| word.len()).expect("there is one thread");
///     assert_eq!(child.result().expect("it does not fail"), 8);
/// });
/// # }, ())?.result()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Scope<'scope, 'env: 'scope> {
    children: Mutex<Vec<Arc<Child>>>,
    scope: PhantomData<&'scope mut &'scope ()>,
    env: PhantomData<&'env mut &'env ()>,
}

impl<'scope> Scope<'scope, '_> {
    /// Forks a child that runs `work` and sends its result back.
    ///
    /// A pipe's end that is moved into the closure is the child's alone: the other side is told
    /// once the child has dropped it or has ended. An end that closures use by reference is
    /// theirs together, from the first use on; the other side is told when all children are gone
    /// that could still use it, which those could that have used neither end so far. This process
    /// counts too once it has used that end itself. An end inside of a `Vec`, `Box` or `Arc` counts
    /// as used by reference. A child that has used one end has given up the other.
    ///
    /// # Errors
    /// `Threads` if this process has other threads; `Os` if the system gives no further process.
    ///
    /// # Examples
    /// ```
    /// # // Doc tests have threads, so that the fork happens in a child that has none.
    /// # bunshin::Process::start(|| {
    /// let numbers = [1, 2, 3];
    /// let sum = bunshin::scope(|scope| scope.spawn(|| numbers.iter().sum::<i32>())?.result().map_err(Box::<dyn std::error::Error>::from));
    /// assert_eq!(sum.expect("it does not fail"), 6);
    /// # }, ())?.result()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn spawn<F, R>(&'scope self, work: F) -> Result<ScopedProcess<'scope, R>>
    where
        F: FnOnce() -> R + 'scope,
        R: Serialize + DeserializeOwned,
    {
        check_threads()?;
        // SAFETY: this is the only thread.
        unsafe { self.spawn_unchecked(work) }
    }

    /// Forks a child whose life is `work`, which gives its exit code. It is killed when the
    /// last handle on it is dropped.
    pub(crate) fn start_worker(
        &self,
        name: String,
        work: impl FnOnce() -> i32,
    ) -> Result<Arc<Child>> {
        check_threads()?;
        let identity = Identity::of_child(Some(name.clone()), StartMethod::Fork, true);
        let run = move || {
            bootstrap::settle_in(identity, None);
            work()
        };
        // SAFETY: this is the only thread.
        let started = unsafe { start(run, true) }?;
        Ok(Child::register(name, started, true))
    }

    /// [`spawn`](Self::spawn), also while there are other threads.
    ///
    /// # Errors
    /// `Os` if the system gives no further process.
    ///
    /// # Safety
    /// As for [`fork_unchecked`].
    ///
    /// # Examples
    /// ```
    /// let numbers = [1, 2, 3];
    /// bunshin::scope(|scope| {
    ///     // SAFETY: the child only adds, and the allocator of the C library can be used after a fork.
    ///     let child = unsafe { scope.spawn_unchecked(|| numbers.iter().sum::<i32>()) }?;
    ///     assert_eq!(child.result()?, 6);
    ///     Ok::<(), Box<dyn std::error::Error>>(())
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn spawn_unchecked<F, R>(&'scope self, work: F) -> Result<ScopedProcess<'scope, R>>
    where
        F: FnOnce() -> R + 'scope,
        R: Serialize + DeserializeOwned,
    {
        let (control, theirs) =
            socket::pair().map_err(|error| Error::os("start a process", error))?;
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        let name = format!("Scope-{}", children.len() + 1);
        let identity = Identity::of_child(Some(name.clone()), StartMethod::Fork, false);
        let control_here = &control;
        let run = move || {
            use std::os::fd::AsRawFd;
            process::close_inherited(control_here.as_raw_fd());
            bootstrap::settle_in(identity, None);
            let mut call = Call::default();
            match panic::catch(false, work) {
                Ok(result) => target::finish(&mut call, &result),
                Err(failure) => target::fail(&mut call, &failure),
            }
            bootstrap::send(&theirs, &mut call)
        };
        // SAFETY: the caller vouches for the threads.
        let started = unsafe { start(run, true) }?;
        let child = Child::register(name, started, false);
        children.push(Arc::clone(&child));
        Ok(ScopedProcess {
            process: Process::new(child, Some(control)),
            scope: PhantomData,
        })
    }
}

/// A child of a [`scope`], with the methods of [`Process`].
///
/// # Examples
/// ```
/// # // Doc tests have threads, so that the fork happens in a child that has none.
/// # bunshin::Process::start(|| {
/// bunshin::scope(|scope| {
///     let child = scope.spawn(|| ()).expect("there is one thread");
///     assert!(child.join().expect("it is ours").success());
/// });
/// # }, ())?.result()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ScopedProcess<'scope, R> {
    process: Process<R>,
    scope: PhantomData<&'scope ()>,
}

impl<R: DeserializeOwned> ScopedProcess<'_, R> {
    /// Waits for what the closure returns; see [`Process::result`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Examples
    /// ```
    /// # // Doc tests have threads, so that the fork happens in a child that has none.
    /// # bunshin::Process::start(|| {
    /// bunshin::scope(|scope| {
    ///     let child = scope.spawn(|| 7).expect("there is one thread");
    ///     assert_eq!(child.result().expect("it does not fail"), 7);
    /// });
    /// # }, ())?.result()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn result(self) -> Result<R, TaskError> {
        self.process.take_result()
    }
}

impl<R> Deref for ScopedProcess<'_, R> {
    type Target = Process<R>;

    fn deref(&self) -> &Process<R> {
        &self.process
    }
}
