//! The Go library behind `claimcheck`, and tokens taken apart and put together without any rule.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Context;
use bulkhead_claims::{Signer, SigningKey};
use bulkhead_testkit::{GoTool, go_tool};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

/// Where the program is.
pub(crate) struct ClaimCheck(PathBuf);

impl ClaimCheck {
    /// `None` where there is no Go, as [`go_tool`] says it.
    pub(crate) fn find() -> anyhow::Result<Option<Self>> {
        Ok(go_tool(GoTool::ClaimCheck)?.map(Self))
    }

    fn run(&self, args: &[&str], input: &str) -> anyhow::Result<Vec<Value>> {
        let mut child = Command::new(&self.0).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut stdin = child.stdin.take().context("its input")?;
        let text = input.to_owned();
        let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
        let output = child.wait_with_output()?;
        writer.join().map_err(|_| anyhow::anyhow!("writing has failed"))??;
        anyhow::ensure!(output.status.success(), "claimcheck ended with {}", output.status);
        let text = String::from_utf8(output.stdout)?;
        Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    }

    /// What Go sees in each token of a kind.
    pub(crate) fn see(&self, tokens: &[(&str, String)]) -> anyhow::Result<Vec<Value>> {
        let line = |(kind, token): &(&str, String)| format!("{}\n", json!({"kind": kind, "token": token}));
        let answers = self.run(&[], &tokens.iter().map(line).collect::<String>())?;
        anyhow::ensure!(answers.len() == tokens.len(), "{} answers for {} tokens", answers.len(), tokens.len());
        Ok(answers)
    }

    /// Whether Go trusts each link of chains of operator, account and user.
    pub(crate) fn judge(&self, chains: &[Value]) -> anyhow::Result<Vec<Value>> {
        let answers = self.run(&["chain"], &chains.iter().map(|chain| format!("{chain}\n")).collect::<String>())?;
        anyhow::ensure!(answers.len() == chains.len(), "{} answers for {} chains", answers.len(), chains.len());
        Ok(answers)
    }

    /// Random claims of every kind.
    pub(crate) fn generate(&self, seed: &str) -> anyhow::Result<Vec<Value>> {
        self.run(&["generate", "--seed", seed, "--count", "70"], "")
    }

    /// Every member that the library knows, by kind.
    pub(crate) fn members(&self) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
        let mut members: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in self.run(&["fields"], "")? {
            let text = |name: &str| Ok::<_, anyhow::Error>(line[name].as_str().context("a text")?.to_owned());
            members.entry(text("kind")?).or_default().push(text("path")?);
        }
        Ok(members)
    }
}

/// The middle of a token, as it is written.
pub(crate) fn body_of(token: &str) -> anyhow::Result<Value> {
    let part = token.split('.').nth(1).context("a token with a body")?;
    Ok(serde_json::from_slice(&BASE64URL_NOPAD.decode(part.as_bytes())?)?)
}

/// The same token with another body, and so without a signature that holds.
pub(crate) fn with_body(token: &str, body: &Value) -> anyhow::Result<String> {
    let mut parts = token.split('.');
    let (head, tail) = (parts.next().context("a header")?, parts.nth(1).context("a signature")?);
    Ok(format!("{head}.{}.{tail}", BASE64URL_NOPAD.encode(body.to_string().as_bytes())))
}

/// Signs whatever body under whatever header, as an issuer that keeps no rule could.
pub(crate) fn sign(header: &Value, body: &Value, key: &SigningKey) -> anyhow::Result<String> {
    let part = |json: &Value| BASE64URL_NOPAD.encode(json.to_string().as_bytes());
    let text = format!("{}.{}", part(header), part(body));
    Ok(format!("{text}.{}", BASE64URL_NOPAD.encode(&key.sign(text.as_bytes())?)))
}
