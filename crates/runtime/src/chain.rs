//! Prints an error with all its causes on one line, which tracing's own error field does not (style: facts that bite, 1).

use std::error::Error;
use std::fmt;

/// `connect to bus: read credentials file: permission denied`
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_is_on_the_line() {
        let error = anyhow::anyhow!("permission denied").context("read credentials file").context("connect to bus");
        assert_eq!(Chain(error.as_ref()).to_string(), "connect to bus: read credentials file: permission denied");
    }
}
