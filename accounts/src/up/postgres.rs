//! A PostgreSQL of our own: loopback only, passwords by file, and never as root, which PostgreSQL refuses.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use bulkhead_runtime::{Chain, LimitReached, eventually};
use uuid::Uuid;

use super::child::{AskBy, Child, ChildError, ChildSpec, RunAs, log_tail};
use super::tools::Tools;
use crate::files::{FileError, make_folder, read_secret, write_secret};

const START_LIMIT: Duration = Duration::from_secs(60);
/// Whose password is in `secrets/postgres-superuser.password`.
pub const SUPERUSER: &str = "bulkhead_admin";

/// Why the database is not there.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    #[error("database folder")]
    File(#[source] FileError),
    #[error("prepare {path} for the database")]
    Folder { path: String, source: std::io::Error },
    #[error("initialize the database in {path}:\n{output}")]
    Initialize { path: String, output: String },
    #[error(
        "the database does not run; if its files in the state folder are damaged, restore them or start anew with `bulkhead up --fresh`"
    )]
    Child(#[source] ChildError),
    #[error("database on port {port} did not come up; the end of its log {log}:\n{tail}")]
    NotUp { port: u16, log: String, tail: String, source: LimitReached },
    #[error("the database's password {path} is gone: restore the file, or start anew with `bulkhead up --fresh`")]
    NoPassword { path: String },
    #[error(
        "the database in {folder} refuses the password in secrets/postgres-superuser.password: restore that file, or \
         start anew with `bulkhead up --fresh`"
    )]
    WrongPassword { folder: String },
    #[error("PostgreSQL refuses to run as root and this machine has neither a user postgres nor a user nobody")]
    NoUser,
}

/// What a database that is up says to us.
enum Up {
    Answers,
    Refused,
}

/// A running PostgreSQL and where it keeps things.
#[derive(Debug)]
pub struct Postgres {
    pub child: Child,
    pub port: u16,
    pub folder: PathBuf,
    superuser_password: String,
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The unprivileged user that stands in for root.
fn stand_in() -> Option<RunAs> {
    let accounts = fs::read_to_string("/etc/passwd").ok()?;
    ["postgres", "nobody"].iter().find_map(|name| {
        let line = accounts.lines().find(|line| line.split(':').next() == Some(name))?;
        let fields: Vec<&str> = line.split(':').collect();
        Some(RunAs { uid: fields.get(2)?.parse().ok()?, gid: fields.get(3)?.parse().ok()? })
    })
}

/// Whether every folder above `path` can be entered by anybody.
fn is_reachable(path: &Path) -> bool {
    path.ancestors().skip(1).all(|folder| fs::metadata(folder).is_ok_and(|data| data.mode() & 0o001 != 0))
}

/// Lets the user that stands in for root pass through `home`, and no more: what is secret has a closed folder of its own.
pub(super) fn open_to_stand_in(home: &Path) {
    if is_root() {
        // Without it the database lives elsewhere, which works too.
        let _ = fs::set_permissions(home, fs::Permissions::from_mode(0o711));
    }
}

/// Where the database lives: in `home`, or beside it when root's home is closed to the user that stands in for root.
#[must_use]
pub fn database_folder(home: &Path) -> PathBuf {
    let inside = home.join("postgres");
    if !is_root() || is_reachable(&inside) {
        return inside;
    }
    let name = Uuid::new_v5(&Uuid::NAMESPACE_URL, home.as_os_str().as_encoded_bytes());
    PathBuf::from("/var/tmp").join(format!("bulkhead-{}", name.simple()))
}

fn folder_error(path: &Path) -> impl Fn(std::io::Error) -> PostgresError {
    let path = path.display().to_string();
    move |source| PostgresError::Folder { path: path.clone(), source }
}

/// Makes a folder that belongs to the user who runs the database, refusing one that somebody else has put there.
fn own_folder(path: &Path, run_as: Option<RunAs>) -> Result<(), PostgresError> {
    let failed = folder_error(path);
    make_folder(path).map_err(PostgresError::File)?;
    let owner = fs::symlink_metadata(path).map_err(&failed)?;
    let expected = run_as.map_or(rustix::process::geteuid().as_raw(), |user| user.uid);
    if !owner.is_dir() || (owner.uid() != expected && owner.uid() != rustix::process::geteuid().as_raw()) {
        return Err(failed(std::io::Error::other(format!("it belongs to user {}, not to us", owner.uid()))));
    }
    if let Some(user) = run_as {
        chown(path, Some(user.uid), Some(user.gid)).map_err(&failed)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(&failed)
}

fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// The folder of PostgreSQL's programs, copied into `folder` when the user who runs them cannot reach them.
fn reachable_programs(tools: &Tools, folder: &Path, run_as: Option<RunAs>) -> Result<PathBuf, PostgresError> {
    let programs = tools.postgres.path.parent().unwrap_or(Path::new("/")).to_owned();
    let Some(user) = run_as.filter(|_| !is_reachable(&tools.postgres.path)) else { return Ok(programs) };
    let install = &tools.postgres.install;
    let copy = folder.join(format!("postgres-{}", tools.postgres.version));
    let copied = copy.join(programs.strip_prefix(install).unwrap_or(Path::new("bin")));
    if !copied.join("postgres").is_file() {
        let part = folder.join("postgres.part");
        copy_tree(install, &part).and_then(|()| fs::rename(&part, &copy)).map_err(folder_error(&copy))?;
    }
    chown(&copy, Some(user.uid), Some(user.gid)).map_err(folder_error(&copy))?;
    Ok(copied)
}

fn command(program: &Path, run_as: Option<RunAs>) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(program);
    if let Some(user) = run_as {
        command.uid(user.uid).gid(user.gid);
    }
    command
}

fn initialize(programs: &Path, folder: &Path, run_as: Option<RunAs>, password: &str) -> Result<(), PostgresError> {
    let password_file = folder.join("password");
    write_secret(&password_file, password.as_bytes()).map_err(PostgresError::File)?;
    if let Some(user) = run_as {
        chown(&password_file, Some(user.uid), Some(user.gid)).map_err(folder_error(&password_file))?;
    }
    let part = folder.join("data.part");
    if part.exists() {
        fs::remove_dir_all(&part).map_err(folder_error(&part))?;
    }
    let output = command(&programs.join("initdb"), run_as)
        .args(["--username", SUPERUSER, "--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--pgdata"])
        .arg(&part)
        .arg("--pwfile")
        .arg(&password_file)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .map_err(folder_error(&part))?;
    fs::remove_file(&password_file).map_err(folder_error(&password_file))?;
    if !output.status.success() {
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        return Err(PostgresError::Initialize { path: part.display().to_string(), output: text });
    }
    let data = folder.join("data");
    fs::rename(&part, &data).map_err(folder_error(&data))
}

/// A database whose password is gone: beside a state folder that was removed it is an orphan and goes, inside one
/// something is damaged and nothing is touched.
fn forget_orphan(home: &Path, folder: &Path, secret_file: &Path) -> Result<(), PostgresError> {
    let data = folder.join("data");
    if secret_file.exists() || !data.exists() {
        return Ok(());
    }
    if folder.starts_with(home) {
        return Err(PostgresError::NoPassword { path: secret_file.display().to_string() });
    }
    fs::remove_dir_all(&data).map_err(folder_error(&data))
}

impl Postgres {
    /// Starts the database of `home` on `port`, initializing it first when there is none.
    ///
    /// # Errors
    /// [`PostgresError`] with the end of PostgreSQL's own log.
    pub async fn start(home: &Path, tools: &Tools, port: u16) -> Result<Self, PostgresError> {
        let run_as = if is_root() { Some(stand_in().ok_or(PostgresError::NoUser)?) } else { None };
        let folder = database_folder(home);
        own_folder(&folder, run_as)?;
        let programs = reachable_programs(tools, &folder, run_as)?;
        let secret_file = home.join("secrets").join("postgres-superuser.password");
        forget_orphan(home, &folder, &secret_file)?;
        if !folder.join("data").exists() {
            let password = Uuid::new_v4().simple().to_string();
            // The password first: a database whose password nobody knows would be lost.
            write_secret(&secret_file, password.as_bytes()).map_err(PostgresError::File)?;
            initialize(&programs, &folder, run_as, &password)?;
        }
        let superuser_password = read_secret(&secret_file).map_err(PostgresError::File)?;
        let log_file = home.join("logs").join("postgres.log");
        let settings = [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={port}"),
            // Socket paths end at 107 bytes; a state folder may be deeper than that.
            "unix_socket_directories=".to_owned(),
            "jit=off".to_owned(),
            "shared_buffers=128MB".to_owned(),
            "max_connections=50".to_owned(),
            // A backup and its restoration touch every table of every tenant's schema in one transaction.
            "max_locks_per_transaction=1024".to_owned(),
        ];
        let mut args = vec!["-D".to_owned(), folder.join("data").display().to_string()];
        args.extend(settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting]));
        let child = Child::start(ChildSpec {
            name: "postgres".to_owned(),
            program: programs.join("postgres"),
            args,
            folder: folder.clone(),
            log_file,
            pid_file: home.join("run").join("postgres.pid"),
            run_as,
            ask_by: AskBy::Interrupt,
        });
        let child = child.map_err(PostgresError::Child)?;
        let mut postgres = Self { child, port, folder, superuser_password };
        postgres.wait_until_up().await?;
        Ok(postgres)
    }

    /// Starts the same database again after it was stopped or killed.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub async fn restart(&mut self) -> Result<(), PostgresError> {
        self.child.stop().await.map_err(PostgresError::Child)?;
        self.child.restart().map_err(PostgresError::Child)?;
        self.wait_until_up().await
    }

    async fn wait_until_up(&mut self) -> Result<(), PostgresError> {
        let url = self.superuser_url();
        let child = &mut self.child;
        let mut dead = None;
        let up = eventually("an answer of the database", START_LIMIT, || {
            dead = dead.take().or_else(|| child.check_running().err());
            let is_dead = dead.is_some();
            let url = url.clone();
            async move {
                if is_dead {
                    return Ok(Up::Answers);
                }
                match bulkhead_store::admin::ping(&url).await {
                    Err(error) if error.is_refused() => Ok(Up::Refused),
                    Err(error) => Err(Chain(&error).to_string()),
                    Ok(()) => Ok(Up::Answers),
                }
            }
        });
        let up = up.await;
        if let Some(error) = dead {
            return Err(PostgresError::Child(error));
        }
        let up = up.map_err(|source| PostgresError::NotUp {
            port: self.port,
            log: self.child.spec().log_file.display().to_string(),
            tail: log_tail(&self.child.spec().log_file, 12),
            source,
        })?;
        match up {
            Up::Answers => Ok(()),
            Up::Refused => Err(PostgresError::WrongPassword { folder: self.folder.display().to_string() }),
        }
    }

    /// For making roles and the database, and for nothing else.
    #[must_use]
    pub fn superuser_url(&self) -> String {
        self.url(SUPERUSER, &self.superuser_password, "postgres")
    }

    /// A database of this server, as the superuser: for dumping and restoring it.
    #[must_use]
    pub fn database_url(&self, database: &str) -> String {
        self.url(SUPERUSER, &self.superuser_password, database)
    }

    #[must_use]
    pub fn url(&self, role: &str, password: &str, database: &str) -> String {
        format!("postgres://{role}:{password}@127.0.0.1:{}/{database}", self.port)
    }
}
