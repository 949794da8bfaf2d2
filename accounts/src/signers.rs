//! Keys whose seed is not on this machine: an external command signs with them (a KMS, Vault, an offline ceremony).
//!
//! The command gets the payload on standard input and answers with the signature on standard output. It is started as it
//! is written, never through a shell, and what it answers is verified with the public key before anything uses it.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use bulkhead_claims::{KeyKind, SignError, Signer};
use data_encoding::{BASE64, BASE64_NOPAD, BASE64URL, BASE64URL_NOPAD};
use nkeys::KeyPair;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;

use crate::files::{FileError, read_text};

/// How the command learns which key to sign with.
pub const KEY_VARIABLE: &str = "BULKHEAD_SIGNER_KEY";
const TIMEOUT_S: u64 = 30;
const TIMEOUT_S_MOST: u64 = 3_600;
const SIGNATURE_BYTES: usize = 64;
/// A signature in base64 has 88 letters; more than this is something else.
const ANSWER_BYTES_MOST: u64 = 4_096;
const COMPLAINT_BYTES_MOST: u64 = 2_048;

/// Why the table of signers cannot be used; names the file.
#[derive(Debug, thiserror::Error)]
pub enum SignersError {
    #[error("read signers")]
    File(#[source] FileError),
    #[error("{path} has mode {mode:03o}: others could choose what is run; run chmod 600 {path}")]
    Mode { path: String, mode: u32 },
    #[error("{path} is not a table of signers")]
    Toml { path: String, source: Box<toml::de::Error> },
    #[error("{path}: {public:?} is not a public key of an operator or account")]
    Key { path: String, public: String },
    #[error("{path}: signer {public} is written twice")]
    Twice { path: String, public: String },
    #[error("{path}: the command of signer {public} must begin with an absolute path to a program")]
    Program { path: String, public: String },
    #[error("{path}: timeout_s of signer {public} is {timeout_s}: write 1 to {TIMEOUT_S_MOST}")]
    Timeout { path: String, public: String, timeout_s: u64 },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignersFile {
    #[serde(default)]
    signer: Vec<SignerEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignerEntry {
    public: String,
    command: Vec<String>,
    timeout_s: Option<u64>,
}

/// A key that an external command signs with.
#[derive(Debug, Clone)]
pub struct CommandSigner {
    public: String,
    program: PathBuf,
    arguments: Vec<String>,
    limit: Duration,
}

impl SignerEntry {
    fn check(self, path: &str) -> Result<CommandSigner, SignersError> {
        let (path, public) = (path.to_owned(), self.public);
        if !matches!(KeyKind::of_public(&public), Some(KeyKind::Operator | KeyKind::Account)) {
            return Err(SignersError::Key { path, public });
        }
        let timeout_s = self.timeout_s.unwrap_or(TIMEOUT_S);
        if timeout_s == 0 || timeout_s > TIMEOUT_S_MOST {
            return Err(SignersError::Timeout { path, public, timeout_s });
        }
        let mut words = self.command.into_iter();
        let program = words.next().map(PathBuf::from).filter(|program| program.is_absolute());
        let Some(program) = program else { return Err(SignersError::Program { path, public }) };
        Ok(CommandSigner { public, program, arguments: words.collect(), limit: Duration::from_secs(timeout_s) })
    }
}

/// Reads `signers.toml`; a file that is not there has none.
///
/// # Errors
/// When the file cannot be read, others can write to it, or it is not what it should be.
pub fn read_signers(path: &Path) -> Result<Vec<CommandSigner>, SignersError> {
    if !path.exists() {
        return Ok(vec![]);
    }
    let text = read_text(path).map_err(SignersError::File)?;
    let shown = path.display().to_string();
    let mode = std::fs::metadata(path).map_or(0, |data| data.permissions().mode() & 0o777);
    if mode & 0o022 != 0 {
        return Err(SignersError::Mode { path: shown, mode });
    }
    let file: SignersFile =
        toml::from_str(&text).map_err(|source| SignersError::Toml { path: shown.clone(), source: Box::new(source) })?;
    let mut signers: Vec<CommandSigner> = Vec::new();
    for entry in file.signer {
        let signer = entry.check(&shown)?;
        if signers.iter().any(|known| known.public == signer.public) {
            return Err(SignersError::Twice { path: shown, public: signer.public });
        }
        signers.push(signer);
    }
    Ok(signers)
}

/// What a command left behind.
struct Answer {
    status: ExitStatus,
    output: Vec<u8>,
    complaint: String,
}

impl CommandSigner {
    /// How people see the command.
    #[must_use]
    pub fn shown(&self) -> String {
        self.program.display().to_string()
    }

    fn failed(&self, problem: String) -> SignError {
        SignError::Elsewhere { public: self.public.clone(), problem: format!("{}: {problem}", self.shown()) }
    }

    fn run(&self, payload: &[u8]) -> Result<Answer, SignError> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env(KEY_VARIABLE, &self.public);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own, so that a limit also ends what it has started.
        let child = command.process_group(0).spawn();
        let child = child.map_err(|error| self.failed(format!("cannot be started: {error}")))?;
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let (sender, answers) = mpsc::channel();
        let payload = payload.to_owned();
        // It may neither read, nor answer, nor end: all of that happens beside us.
        std::thread::spawn(move || sender.send(wait_for_answer(child, payload)));
        match answers.recv_timeout(self.limit) {
            Ok(answer) => answer.map_err(|error| self.failed(format!("cannot be waited for: {error}"))),
            Err(_) => {
                // It has not been waited for, so the number is still its own.
                let _ = group.map(|group| kill_process_group(group, Signal::KILL));
                Err(self
                    .failed(format!("no answer in {} s; timeout_s in signers.toml allows more", self.limit.as_secs())))
            }
        }
    }
}

fn wait_for_answer(mut child: Child, payload: Vec<u8>) -> std::io::Result<Answer> {
    let stdin = child.stdin.take();
    let writer = std::thread::spawn(move || {
        // One that does not read all of it has decided already; its answer tells.
        let _ = stdin.map(|mut stdin| stdin.write_all(&payload));
    });
    let stderr = child.stderr.take();
    let complaints = std::thread::spawn(move || read_some(stderr, COMPLAINT_BYTES_MOST));
    let output = read_some(child.stdout.take(), ANSWER_BYTES_MOST);
    let status = child.wait()?;
    let complaint = complaints.join().unwrap_or_default();
    // Its reader has ended, so it ends.
    drop(writer);
    Ok(Answer { status, output, complaint: String::from_utf8_lossy(&complaint).trim().to_owned() })
}

fn read_some(pipe: Option<impl Read>, most: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What was read before a failure is all that there is.
    let _ = pipe.map(|pipe| pipe.take(most).read_to_end(&mut bytes));
    bytes
}

/// 64 raw bytes, or their text in base64 or base64url, padded or not.
fn read_signature(output: &[u8]) -> Option<Vec<u8>> {
    if output.len() == SIGNATURE_BYTES {
        return Some(output.to_vec());
    }
    let text = output.trim_ascii();
    let encodings = [BASE64, BASE64_NOPAD, BASE64URL, BASE64URL_NOPAD];
    let decoded = encodings.iter().find_map(|encoding| encoding.decode(text).ok());
    decoded.filter(|bytes| bytes.len() == SIGNATURE_BYTES)
}

impl Signer for CommandSigner {
    fn public(&self) -> &str {
        &self.public
    }

    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, SignError> {
        let Answer { status, output, complaint } = self.run(payload)?;
        let said = if complaint.is_empty() { "it said nothing".to_owned() } else { format!("it said: {complaint}") };
        if !status.success() {
            return Err(self.failed(format!("{status}; {said}")));
        }
        let signature = read_signature(&output).ok_or_else(|| {
            let rule = format!("an answer is {SIGNATURE_BYTES} raw bytes, or their base64");
            self.failed(format!("{} bytes that are no signature: {rule}; {said}", output.len()))
        })?;
        let key = KeyPair::from_public_key(&self.public).map_err(SignError::Key)?;
        let wrong = |_| self.failed(format!("the signature is not of this key; {said}"));
        key.verify(payload, &signature).map_err(wrong)?;
        Ok(signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_claims::SigningKey;

    fn signers(folder: &Path, text: &str) -> Result<Vec<CommandSigner>, SignersError> {
        let path = folder.join("signers.toml");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        read_signers(&path)
    }

    /// A signer whose command is a script that answers as `body` says.
    fn scripted(folder: &Path, key: &SigningKey, body: &str, timeout_s: u64) -> CommandSigner {
        let script = folder.join("sign.sh");
        std::fs::write(&script, body).unwrap();
        let text = format!(
            "[[signer]]\npublic = \"{}\"\ncommand = [\"/bin/sh\", \"{}\", \"a b; $(touch {}/harm)\"]\ntimeout_s = {timeout_s}\n",
            key.public(),
            script.display(),
            folder.display()
        );
        signers(folder, &text).unwrap().remove(0)
    }

    #[test]
    fn a_signature_is_taken_raw_or_as_text_and_only_when_it_is_the_keys() {
        let folder = tempfile::tempdir().unwrap();
        let (key, other) = (SigningKey::generate(KeyKind::Operator), SigningKey::generate(KeyKind::Operator));
        let answer = folder.path().join("answer");
        let body = format!("cat > {0}/payload; echo \"$1\" > {0}/argument; cat {0}/answer", folder.path().display());
        let signer = scripted(folder.path(), &key, &body, 30);
        let signature = key.sign(b"payload").unwrap();
        for text in [
            signature.clone(),
            BASE64.encode(&signature).into_bytes(),
            format!("{}\n", BASE64URL_NOPAD.encode(&signature)).into_bytes(),
        ] {
            std::fs::write(&answer, text).unwrap();
            assert_eq!(signer.sign(b"payload").unwrap(), signature);
        }
        assert_eq!(std::fs::read(folder.path().join("payload")).unwrap(), b"payload");
        let argument = std::fs::read_to_string(folder.path().join("argument")).unwrap();
        assert!(argument.starts_with("a b; $(touch"), "{argument}");
        assert!(!folder.path().join("harm").exists(), "an argument went through a shell");
        for (bytes, why) in [
            (other.sign(b"payload").unwrap(), "not of this key"),
            (key.sign(b"another").unwrap(), "not of this key"),
            (b"nothing".to_vec(), "no signature"),
            (vec![b'x'; 5_000], "no signature"),
            (vec![], "no signature"),
        ] {
            std::fs::write(&answer, bytes).unwrap();
            let error = signer.sign(b"payload").unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(key.public()), "{error}");
        }
    }

    #[test]
    fn a_command_that_fails_hangs_or_is_not_there_is_named_with_what_it_said() {
        let folder = tempfile::tempdir().unwrap();
        let key = SigningKey::generate(KeyKind::Account);
        let payload = vec![b'p'; 200_000];
        let refuses = scripted(folder.path(), &key, "echo \"no $BULKHEAD_SIGNER_KEY today\" >&2; exit 3", 30);
        let error = refuses.sign(&payload).unwrap_err().to_string();
        assert!(error.contains(&format!("no {} today", key.public())) && error.contains('3'), "{error}");
        let hangs = scripted(folder.path(), &key, "sleep 1000 & wait", 1);
        let error = hangs.sign(&payload).unwrap_err().to_string();
        assert!(error.contains("no answer in 1 s"), "{error}");
        let gone = CommandSigner { program: "/nowhere/signer".into(), ..hangs };
        assert!(gone.sign(b"x").unwrap_err().to_string().contains("/nowhere/signer"));
    }

    #[test]
    fn a_table_that_is_wrong_or_open_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let key = SigningKey::generate(KeyKind::Operator).public().to_owned();
        let entry = |rest: &str| format!("[[signer]]\npublic = \"{key}\"\n{rest}\n");
        let good = entry("command = [\"/bin/true\"]");
        assert_eq!(signers(folder.path(), &good).unwrap().len(), 1);
        for (text, why) in [
            (good.replace(&key, "UNKNOWN"), "not a public key"),
            (good.clone() + &good, "twice"),
            (entry("command = [\"true\"]"), "absolute path"),
            (entry("command = []"), "absolute path"),
            (entry("command = [\"/bin/true\"]\ntimeout_s = 0"), "write 1 to"),
            (entry("command = \"/bin/true\""), "not a table of signers"),
            (entry("command = [\"/bin/true\"]\nshell = true"), "not a table of signers"),
        ] {
            let error = signers(folder.path(), &text).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("signers.toml"), "{error}");
        }
        let path = folder.path().join("signers.toml");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(read_signers(&path).unwrap_err().to_string().contains("chmod 600"));
        assert!(read_signers(&folder.path().join("none")).unwrap().is_empty());
    }
}
