//! Counts the work of a template for one message, and stops it at the limits.

use std::sync::Arc;

use super::moment::Calendar;
use super::value::Value;

/// The steps that a template can use. Each list entry that is read costs one, and so do 64 bytes of text that are read or
/// written. So a template can handle 1 MiB of text in all.
const STEPS: usize = 16_384;
const BYTES_PER_STEP: usize = 64;
/// The longest text that a template can make, in bytes. It is the limit of a message, too.
pub(super) const MAX_TEXT: usize = 262_144;

/// Why a part of a template gives no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FailureReason {
    /// It uses a value that the message does not have.
    Missing(String),
    /// It is wrong for this message.
    Wrong(String),
}

impl FailureReason {
    /// The error text.
    pub(super) fn into_text(self) -> String {
        let (Self::Missing(text) | Self::Wrong(text)) = self;
        text
    }
}

impl From<String> for FailureReason {
    fn from(text: String) -> Self {
        Self::Wrong(text)
    }
}

impl From<&str> for FailureReason {
    fn from(text: &str) -> Self {
        Self::Wrong(text.to_owned())
    }
}

/// The work of one template on one message.
#[derive(Debug)]
pub(super) struct Work<'a> {
    pub(super) calendar: &'a Arc<Calendar>,
    left: usize,
}

impl<'a> Work<'a> {
    pub(super) fn new(calendar: &'a Arc<Calendar>) -> Self {
        Self { calendar, left: STEPS }
    }

    /// Uses some of the steps.
    ///
    /// # Errors
    /// Too few steps are left.
    pub(super) fn spend(&mut self, steps: usize) -> Result<(), FailureReason> {
        match self.left.checked_sub(steps) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err("this template does too much work, or handles more than 1 MiB of text".into()),
        }
    }

    /// Counts the reading or writing of `bytes` bytes of text.
    ///
    /// # Errors
    /// The text is longer than [`MAX_TEXT`]. Also the errors of [`Self::spend`].
    pub(super) fn handle(&mut self, bytes: usize) -> Result<(), FailureReason> {
        fits(bytes)?;
        self.spend(bytes / BYTES_PER_STEP)
    }

    /// Counts a new text and returns it as a value. Call [`Self::handle`] before you build one that may be long.
    ///
    /// # Errors
    /// The text is too long, or too few steps are left.
    pub(super) fn made(&mut self, text: String) -> Result<Value, FailureReason> {
        self.handle(text.len())?;
        Ok(Value::from(text))
    }

    /// Appends a value to a text.
    ///
    /// # Errors
    /// The value has no text, or the result gets too long.
    pub(super) fn write(&mut self, out: &mut String, value: &Value) -> Result<(), FailureReason> {
        let text = value.written()?;
        self.append(out, &text)
    }

    /// Appends a text to another.
    ///
    /// # Errors
    /// The result gets too long.
    pub(super) fn append(&mut self, out: &mut String, text: &str) -> Result<(), FailureReason> {
        self.handle(text.len())?;
        fits(out.len() + text.len())?;
        out.push_str(text);
        Ok(())
    }
}

/// Refuses a text of more than [`MAX_TEXT`] bytes.
///
/// # Errors
/// It is longer.
pub(super) fn fits(bytes: usize) -> Result<(), FailureReason> {
    match bytes > MAX_TEXT {
        true => Err(format!("the text gets longer than {MAX_TEXT} bytes").into()),
        false => Ok(()),
    }
}
