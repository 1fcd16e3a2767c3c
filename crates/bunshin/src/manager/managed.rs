//! Objects of the program's own in a server, and the proxies to them.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, PoisonError, RwLock};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::client::{Answer, Ask};
use super::message::{FIELD, Op, ReplyHead, Status, field_head, number_of};
use super::proxy::proxy;
use super::referent::Referent;
use super::registry::{Own, Registry, Session, Slot};
use super::wire::Wire;
use crate::codec::attachments::{Incoming, Outgoing};
use crate::codec::outcome::Failure;
use crate::codec::serde::{decode, encode};
use crate::error::{Error, ErrorKind, Result};
use crate::process::{Panic, Target, panic, target};
use crate::shm::heap::Heap;
use crate::sys::image;
use crate::transport::Patience;
use crate::transport::channel::Failure as NotSent;
use crate::transport::receiver::Message;

/// Why a method of a managed object gave no value.
///
/// # Examples
/// ```
/// use bunshin::{CallError, Manager};
///
/// struct Account(i64);
///
/// #[bunshin::managed]
/// impl Account {
///     pub fn new() -> Self {
///         Self(0)
///     }
///     pub fn withdraw(&mut self, amount: i64) {
///         assert!(amount <= self.0, "{} is too much", amount);
///         self.0 -= amount;
///     }
/// }
///
/// let manager = Manager::new()?;
/// match AccountProxy::new(&manager)?.withdraw(7) {
///     Err(CallError::Panicked(panic)) => assert_eq!(panic.message(), "7 is too much"),
///     other => panic!("not what was expected: {other:?}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum CallError {
    /// The method panicked. The object stays as the method left it, and can be called again.
    Panicked(Panic),
    /// The arguments could not be sent, or not be decoded in the server.
    Arguments(Error),
    /// The result could not be sent, or not be decoded here.
    Result(Error),
    /// The server is gone: shut down, or its process has ended.
    Disconnected,
    /// Something else.
    Failed(Error),
}

impl CallError {
    /// Whether the server is gone.
    #[must_use]
    pub fn is_disconnected(&self) -> bool {
        matches!(self, Self::Disconnected)
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked(panic) => write!(f, "the method {panic}"),
            Self::Arguments(error) => write!(f, "the arguments did not get there: {error}"),
            Self::Result(error) => write!(f, "the result did not get here: {error}"),
            Self::Disconnected => super::client::disconnected().fmt(f),
            Self::Failed(error) => write!(f, "the method was not called: {error}"),
        }
    }
}

impl StdError for CallError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Arguments(error) | Self::Result(error) | Self::Failed(error) => Some(error),
            _ => None,
        }
    }
}

impl From<Error> for CallError {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::Disconnected => Self::Disconnected,
            ErrorKind::Encode => Self::Arguments(error),
            ErrorKind::Decode => Self::Result(error),
            _ => Self::Failed(error),
        }
    }
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Arguments(error) | CallError::Result(error) | CallError::Failed(error) => {
                error
            }
            CallError::Disconnected => super::client::disconnected(),
            CallError::Panicked(_) => Self::new(ErrorKind::Os, error.to_string()),
        }
    }
}

impl From<Failure> for CallError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Panicked { message, location } => Self::Panicked(Panic { message, location }),
            Failure::Arguments(words) => Self::Arguments(Error::new(ErrorKind::Decode, words)),
            Failure::Result(words) => Self::Result(Error::new(ErrorKind::Encode, words)),
        }
    }
}

/// A type whose objects can live in a manager's server.
///
/// [`managed`](macro@crate::managed) on an `impl` block implements it.
pub trait Managed: Send + Sync + Sized + 'static {
    /// The proxy, with the methods of the `impl` block.
    type Proxy: From<Proxy<Self>>;

    /// Calls a method by its number.
    #[doc(hidden)]
    fn call(object: &RwLock<Self>, method: u64, call: &mut MethodCall);
}

/// What the methods of a proxy go through: a reference to an object of type `T` in a
/// manager's server.
///
/// The attribute [`managed`](macro@crate::managed) makes a type around it that has the
/// methods. Clones refer to the same object, also in other processes; it goes when the last
/// one does.
pub struct Proxy<T> {
    referent: Arc<Referent>,
    types: PhantomData<fn() -> T>,
}

proxy!(Proxy<T>);

impl<T: Managed> Proxy<T> {
    /// Calls a method by its number.
    #[doc(hidden)]
    pub fn call<A: Serialize, R: DeserializeOwned>(
        &self,
        method: u64,
        arguments: &A,
    ) -> Result<R, CallError> {
        call(self.referent.ask(Op::Method)?.number(method), arguments)
    }
}

/// Sends a request with arguments, and reads the result.
pub(super) fn call<A: Serialize, R: DeserializeOwned>(
    ask: Ask,
    arguments: &A,
) -> Result<R, CallError> {
    let mut answer = ask.field(arguments)?.call()?;
    check(&mut answer)?;
    answer.value().map_err(CallError::from)
}

fn check(answer: &mut Answer) -> Result<(), CallError> {
    answer.check()?;
    if answer.status == Status::Failure {
        return Err(answer.value::<Failure>()?.into());
    }
    Ok(())
}

/// Makes an object in a server by a function that runs there.
pub(super) fn make<F, Args>(ask: Ask, _target: F, arguments: &Args) -> Result<u64, CallError>
where
    F: Target<Args>,
    F::Output: Managed,
    Args: Serialize + DeserializeOwned,
{
    let entry = image::offset_of(run_make::<F, Args>).ok_or_else(not_ours)?;
    let mut answer = ask.number(entry).field(arguments)?.call()?;
    check(&mut answer)?;
    Ok(answer.number)
}

pub(super) fn not_ours() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "the function lies in a shared library, where a server may not find it; \
         call it from a function of the program itself",
    )
}

fn run_make<F, Args>(making: &mut Making<'_>)
where
    F: Target<Args>,
    F::Output: Managed,
    Args: DeserializeOwned,
{
    let target = image::conjure::<F>();
    if let Some(object) = making
        .call
        .attempt(|arguments: Args| target.call(arguments))
    {
        making.made = Some(Arc::new(Content(RwLock::new(object))));
    }
}

/// An object that is being made.
pub(super) struct Making<'a> {
    pub(super) call: &'a mut MethodCall,
    pub(super) made: Option<Arc<dyn Callable>>,
}

/// An entry that runs on an object.
pub(super) struct Entering<'a> {
    pub(super) call: &'a mut MethodCall,
    pub(super) object: &'a dyn Callable,
}

/// An object of the program's own, whatever it is.
pub(super) trait Callable: Send + Sync {
    fn call(&self, method: u64, call: &mut MethodCall);
    fn as_any(&self) -> &dyn Any;
}

struct Content<T>(RwLock<T>);

impl<T: Managed> Callable for Content<T> {
    fn call(&self, method: u64, call: &mut MethodCall) {
        T::call(&self.0, method, call);
    }

    fn as_any(&self) -> &dyn Any {
        &self.0
    }
}

/// Such an object in a server's table.
pub(super) struct UserObject(Option<Arc<dyn Callable>>);

impl UserObject {
    pub(super) fn new(content: Arc<dyn Callable>) -> Self {
        Self(Some(content))
    }

    pub(super) fn content(&self) -> Option<Arc<dyn Callable>> {
        self.0.clone()
    }

    pub(super) fn take_content(&mut self) -> Option<Own> {
        self.0.take()
    }
}

/// A call of a method, in the server: what the code that `managed` writes is given.
#[doc(hidden)]
pub struct MethodCall {
    message: Option<Message>,
    /// Where the arguments start in it.
    at: usize,
    incoming: Incoming,
    reply: Vec<u8>,
    outgoing: Outgoing,
    named: Vec<Arc<Slot>>,
    registry: Arc<Registry>,
    number: u32,
    status: Status,
    heap: Option<Arc<Heap>>,
    code: u64,
}

impl MethodCall {
    pub(super) fn new(registry: &Arc<Registry>, heap: Option<Arc<Heap>>) -> Self {
        Self {
            message: None,
            at: 0,
            incoming: Incoming::default(),
            reply: Vec::new(),
            outgoing: Outgoing::default(),
            named: Vec::new(),
            registry: Arc::clone(registry),
            number: 0,
            status: Status::Ok,
            heap,
            code: 0,
        }
    }

    pub(super) fn begin(&mut self, number: u32) {
        self.number = number;
    }

    pub(super) fn arguments(&mut self, message: Message, at: usize, incoming: Incoming) {
        self.message = Some(message);
        self.at = at;
        self.incoming = incoming;
    }

    /// Decodes the arguments and runs `work` on them; what it returns, if it does.
    pub(super) fn attempt<A: DeserializeOwned, R>(
        &mut self,
        work: impl FnOnce(A) -> R,
    ) -> Option<R> {
        let message = self.message.take();
        let bytes = message.as_ref().map_or(&[][..], Message::bytes);
        let bytes = bytes.get(self.at..).unwrap_or(&[]);
        let incoming = &mut self.incoming;
        let arguments = match panic::catch(true, || decode::<A>(bytes, incoming)) {
            Ok(Ok(arguments)) => arguments,
            Ok(Err(error)) => {
                self.refuse(&Failure::Arguments(error.to_string()));
                return None;
            }
            Err(failure) => {
                self.refuse(&Failure::Arguments(target::said(failure)));
                return None;
            }
        };
        // What the arguments did not take, and the memory that their encoded form lies in.
        self.incoming = Incoming::default();
        drop(message);
        match panic::catch(true, || work(arguments)) {
            Ok(result) => Some(result),
            Err(failure) => {
                self.refuse(&failure);
                None
            }
        }
    }

    /// Decodes the arguments, runs `work` on them, and answers with its result.
    pub fn run<A: DeserializeOwned, R: Serialize>(&mut self, work: impl FnOnce(A) -> R) {
        let Some(result) = self.attempt(work) else {
            return;
        };
        self.answer(&result);
        // Dropping the result is the user's code too.
        let _ = panic::catch(true, move || drop(result));
    }

    /// Answers that there is no such method.
    pub fn unknown(&mut self) {
        self.fail(&Error::new(
            ErrorKind::TypeMismatch,
            "a manager's object has no such method",
        ));
    }

    fn answer<R: Serialize>(&mut self, result: &R) {
        self.outgoing = match &self.heap {
            Some(heap) => Outgoing::near_server(Some(Arc::clone(heap)), self.registry.id),
            None => Outgoing::over_network(self.registry.id),
        };
        self.start(Status::Ok, 0);
        let (reply, outgoing) = (&mut self.reply, &mut self.outgoing);
        let start = reply.len() - FIELD;
        let failure = match panic::catch(true, || encode(result, reply, outgoing)) {
            Ok(Ok(())) => match self.finish(start) {
                Ok(()) => return,
                Err(error) => Failure::Result(error.to_string()),
            },
            Ok(Err(error)) => Failure::Result(error.to_string()),
            Err(failure) => Failure::Result(target::said(failure)),
        };
        self.refuse(&failure);
    }

    /// Starts a reply with one field.
    fn start(&mut self, status: Status, code: u64) {
        self.status = status;
        self.code = code;
        self.reply.clear();
        self.reply
            .extend_from_slice(&ReplyHead::head(status, self.number, code));
        self.reply.extend_from_slice(&[0; FIELD]);
    }

    fn finish(&mut self, start: usize) -> Result<()> {
        let len = self.reply.len() - start - FIELD;
        let names = std::mem::take(&mut self.outgoing.named);
        let head = field_head(len, names.len(), self.outgoing.handles.len())?;
        self.reply[start..start + FIELD].copy_from_slice(&head);
        for number in names {
            // While the result holds them; the client will hold them itself.
            self.named.push(self.registry.find(number)?);
            self.reply.extend_from_slice(&number.to_le_bytes());
        }
        Ok(())
    }

    fn refuse(&mut self, failure: &Failure) {
        self.discard();
        self.start(Status::Failure, 0);
        let start = self.reply.len() - FIELD;
        // Strings always encode.
        let _ = encode(failure, &mut self.reply, &mut self.outgoing);
        let _ = self.finish(start);
    }

    pub(super) fn fail(&mut self, error: &Error) {
        self.discard();
        self.start(Status::Failed, number_of(error.kind()));
        let start = self.reply.len() - FIELD;
        self.reply.extend_from_slice(error.to_string().as_bytes());
        let _ = self.finish(start);
    }

    fn discard(&mut self) {
        self.incoming = Incoming::default();
        self.outgoing.discard();
        self.named.clear();
    }

    /// Sends what the call has come to.
    pub(super) fn send(
        &mut self,
        wire: &Wire,
        session: &Session,
        number: u64,
        patience: Patience,
    ) -> Result<(), NotSent> {
        if self.reply.is_empty() {
            self.reply
                .extend_from_slice(&ReplyHead::head(Status::Ok, self.number, number));
        }
        for slot in &self.named {
            session.hold(slot);
        }
        wire.send(&self.reply, &mut self.outgoing, patience)
    }
}

/// For code that `managed` writes.
#[doc(hidden)]
pub mod macro_support {
    pub use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{PoisonError, RwLock};

    /// Runs a method with `&self`.
    pub fn read<T, R>(object: &RwLock<T>, work: impl FnOnce(&T) -> R) -> R {
        // A method that panicked has told its caller so; the object is used on.
        work(&object.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs a method with `&mut self`.
    pub fn write<T, R>(object: &RwLock<T>, work: impl FnOnce(&mut T) -> R) -> R {
        work(&mut object.write().unwrap_or_else(PoisonError::into_inner))
    }
}
