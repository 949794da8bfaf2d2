//! An error as one sentence for people: each cause once, although some libraries show theirs in their own text as well.

use std::error::Error;

/// The error and its causes, outermost first. A cause that the text already ends with is left out.
pub(crate) fn reason(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Step {
        text: &'static str,
        source: Option<Box<Step>>,
    }

    fn chain(texts: &[&'static str]) -> Step {
        let (text, rest) = texts.split_first().expect("a text");
        Step { text, source: (!rest.is_empty()).then(|| Box::new(chain(rest))) }
    }

    #[test]
    fn each_cause_is_said_once() {
        for (texts, said) in [
            (&["connect"][..], "connect"),
            (&["connect", "refused"], "connect: refused"),
            (&["connect", "IO error: refused", "refused"], "connect: IO error: refused"),
            (&["refused", "connect", "refused"], "refused: connect: refused"),
        ] {
            assert_eq!(reason(&chain(texts)), said);
        }
    }
}
