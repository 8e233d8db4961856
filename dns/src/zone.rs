//! The seam between the servers and those who know the answers.

use std::future::Future;
use std::pin::Pin;

use crate::answer::Answer;
use crate::fast::Fast;
use crate::question::Question;

/// Knows the answers. Called on a thread that answers everybody: it must not block.
pub trait Zone: Send + Sync + 'static {
    /// Answers, or says that the answer takes a while.
    fn answer(&self, question: &Question<'_>) -> Reply;

    /// Its answers that are ready as bytes, for one more thread; `None` where there are none.
    fn fast(&self) -> Option<Box<dyn Fast>> {
        None
    }
}

/// An answer, now or later.
pub enum Reply {
    /// Known.
    Now(Outcome),
    /// To be waited for. The server limits how many are under way and how long each may take.
    Later(Pin<Box<dyn Future<Output = Outcome> + Send>>),
}

/// What to send.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// An answer of ours.
    Answer(Answer),
    /// Another server's message, sent on with the client's id and cut to the client's size.
    Relayed(Vec<u8>),
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        Self::Now(Outcome::Answer(answer))
    }
}
