//! Verdicts on the inputs of the fuzz targets, each changed at random places and truly signed.

use anyhow::{Context, ensure};
use fastrand::Rng;
use serde_json::Value;
use time::OffsetDateTime;

use super::{Keys, Verdict, header, ours, theirs};
use crate::mutations::{mutate_json, seeds, words};
use crate::tool::{ClaimCheck, body_of, sign};

/// Of each input.
const MUTATIONS: usize = 150;

fn tokens(keys: &Keys) -> anyhow::Result<Vec<(&'static str, String)>> {
    let kinds = ["operator", "account", "user", "activation", "authorization_request", "authorization_response"];
    let words = words();
    let mut random = Rng::with_seed(3);
    let mut tokens = Vec::new();
    for (path, seed) in seeds("sign_again") {
        let Some(kind) = kinds.into_iter().find(|kind| path.ends_with(kind)) else { continue };
        let body: Value = serde_json::from_slice(&[b"{", &seed[1..]].concat()).context("a seed is JSON")?;
        for _ in 0..MUTATIONS {
            let mut body = body.clone();
            (0..random.usize(0..4)).for_each(|_| mutate_json(&mut body, &words, &mut random));
            let Some(members) = body.as_object_mut() else { continue };
            members.insert("iss".to_owned(), keys.issuer(kind).public().into());
            tokens.push((kind, sign(&header(), &body, keys.issuer(kind))?));
        }
    }
    Ok(tokens)
}

/// What we refuse and the library does not, of a hundred: capital letters, a `null` in a list and the like.
const STRICTER_PERCENT_MAX: usize = 2;

#[test]
fn the_verdict_is_the_same_whatever_is_changed() -> anyhow::Result<()> {
    let Some(go) = ClaimCheck::find()? else { return Ok(()) };
    let keys = Keys::generate();
    let tokens = tokens(&keys)?;
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let (mut wrong, mut stricter, mut good) = (Vec::new(), 0, 0);
    for ((kind, token), seen) in tokens.iter().zip(go.see(&tokens)?) {
        let ((ours, why), (theirs, their_why)) = (ours(kind, token, now), theirs(&seen));
        match (ours, theirs) {
            (ours, theirs) if ours == theirs => good += usize::from(ours == Verdict::Valid),
            // Bad to both, by reading to one of them and by its rules to the other.
            (Verdict::Invalid, Verdict::Refused) => {}
            (Verdict::Refused, _) => stricter += 1,
            _ => {
                let body = body_of(token)?;
                wrong.push(format!("{kind}: ours {ours:?}: {why}\n  Go {theirs:?}: {their_why}\n  {body}"));
            }
        }
    }
    ensure!(wrong.is_empty(), "{} verdicts of {}:\n{}", wrong.len(), tokens.len(), wrong.join("\n"));
    ensure!(stricter * 100 <= tokens.len() * STRICTER_PERCENT_MAX, "{stricter} of {} we refuse", tokens.len());
    // The control: the changes are neither too tame nor too wild.
    ensure!(good * 10 > tokens.len() && good * 10 < tokens.len() * 9, "{good} of {} are good", tokens.len());
    Ok(())
}
