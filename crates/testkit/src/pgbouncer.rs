//! The real PgBouncer before a test's PostgreSQL, lending its connections by the transaction.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use bulkhead_accounts::up::child::AskBy;
use bulkhead_accounts::up::{Child, ChildSpec};
use bulkhead_runtime::eventually;
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::settings::interop_settings;
use crate::{LIMIT, TestDatabase, free_ports};

/// Debian's package and the one library of it that is rarely there, as apt names them, and their hashes for x86_64.
const PACKAGES: [(&str, &str); 2] = [
    ("pgbouncer=1.18.0-1+deb12u1", "b8468c31f94596da0967b1a27980a0a036268eb8e53d3e647651bd7b82b6f65e"),
    ("libc-ares2=1.18.1-3", "087fd5c2ac883202e1786ab45617cdab7f77bc7f060d58cca177ddf6b6c3fa73"),
];
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// A running PgBouncer that has two connections to the server and many to whoever comes.
pub struct PgBouncer {
    // Before its folder: fields are dropped in order.
    _child: Child,
    _folder: TempDir,
    port: u16,
}

impl PgBouncer {
    /// Before `database`, with `settings` beside those that are needed. `None`, after a loud line on stderr, where there is none
    /// and none can be fetched. `BULKHEAD_INTEROP=required` makes that an error.
    ///
    /// # Errors
    /// When it does not start, or is required and cannot be fetched.
    pub async fn start(database: &TestDatabase, settings: &str) -> anyhow::Result<Option<Self>> {
        let interop = interop_settings()?;
        let installed = match find(&interop.tools_folder) {
            Ok(installed) => installed,
            Err(why) if interop.is_required => return Err(why.context("BULKHEAD_INTEROP=required")),
            Err(why) => {
                eprintln!("SKIPPED: nothing is asked through PgBouncer: {why:#}");
                return Ok(None);
            }
        };
        let folder = tempfile::Builder::new().prefix("bulkhead-bouncer-").tempdir().context("make a folder")?;
        // PgBouncer refuses root: whoever stands in for it has to pass.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).context("open the folder")?;
        let [port] = free_ports()?;
        let args = lay_out(&installed, folder.path(), database, port, settings)?;
        let child = Child::start(ChildSpec {
            name: "pgbouncer".to_owned(),
            program: PathBuf::from("/usr/bin/env"),
            args,
            folder: folder.path().to_owned(),
            log_file: folder.path().join("pgbouncer.log"),
            pid_file: folder.path().join("pgbouncer.pid"),
            run_as: database.run_as(),
            ask_by: AskBy::Terminate,
        })?;
        let bouncer = Self { _child: child, _folder: folder, port };
        let answers = eventually("an answer of PgBouncer", LIMIT, || async {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.map_err(|error| error.to_string())
        });
        answers.await.context("start PgBouncer")?;
        Ok(Some(bouncer))
    }

    /// The same address by way of this PgBouncer.
    ///
    /// # Panics
    /// When `url` is none of a test's database.
    #[must_use]
    pub fn before(&self, url: &str) -> String {
        let (start, database) = url.rsplit_once('/').expect("an address names a database");
        let (host, _) = start.rsplit_once(':').expect("an address names a port");
        format!("{host}:{}/{database}", self.port)
    }
}

/// The program and its libraries where whoever runs it can reach them, and its settings; what starts it.
fn lay_out(
    installed: &Path,
    folder: &Path,
    database: &TestDatabase,
    port: u16,
    settings: &str,
) -> anyhow::Result<Vec<String>> {
    let program = folder.join("pgbouncer");
    fs::copy(installed.join("usr/sbin/pgbouncer"), &program).context("copy pgbouncer")?;
    for library in fs::read_dir(installed.join(LIBRARIES)).into_iter().flatten().flatten() {
        if library.path().is_file() && library.file_name().as_encoded_bytes().starts_with(b"libcares") {
            fs::copy(library.path(), folder.join(library.file_name())).context("copy a library")?;
        }
    }
    let (users, config) = (folder.join("users"), folder.join("pgbouncer.ini"));
    let passwords = ["bulkhead_core", "bulkhead_registry", "bulkhead_dispatch", "bulkhead_provision"]
        .map(|role| format!("\"{role}\" \"{}\"\n", database.password()));
    fs::write(&users, passwords.concat()).context("write users")?;
    let text = format!(
        "[databases]\nbulkhead = host=127.0.0.1 port={} dbname=bulkhead\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
         listen_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\npool_mode = transaction\n\
         default_pool_size = 2\nmax_client_conn = 200\n{settings}\n",
        database.port(),
        users.display()
    );
    fs::write(&config, text).context("write settings")?;
    let library_path = format!("LD_LIBRARY_PATH={}", folder.display());
    Ok(vec![library_path, program.display().to_string(), config.display().to_string()])
}

/// Where the packages are unpacked, or `/` where PgBouncer is installed.
fn find(tools: &Path) -> anyhow::Result<PathBuf> {
    if Path::new("/usr/sbin/pgbouncer").is_file() {
        return Ok(PathBuf::from("/"));
    }
    let target = tools.join("pgbouncer-1.18.0");
    if target.is_dir() {
        return Ok(target);
    }
    if std::env::consts::ARCH != "x86_64" {
        bail!("no package of PgBouncer is pinned for {} machines: install it", std::env::consts::ARCH);
    }
    fs::create_dir_all(tools).context("make the folder of fetched programs")?;
    // Of two that fetch at once the first rename wins.
    let part = tempfile::Builder::new().prefix(".pgbouncer-").tempdir_in(tools).context("make a folder")?;
    let unpacked = part.path().join("unpacked");
    for (package, expected) in PACKAGES {
        let deb = download(package, &part.path().join(expected))?;
        let found = HEXLOWER.encode(&Sha256::digest(fs::read(&deb).context("read a package")?));
        ensure!(found == expected, "{package} has SHA-256 {found}, but {expected} is pinned: it was not used");
        let mut unpack = Command::new("dpkg-deb");
        run(unpack.arg("-x").arg(&deb).arg(&unpacked))?;
    }
    match fs::rename(&unpacked, &target) {
        Err(error) if !target.is_dir() => Err(error).context("keep PgBouncer"),
        Ok(()) | Err(_) => Ok(target),
    }
}

fn download(package: &str, folder: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(folder).context("make a folder")?;
    let fetch = |options: &[String]| {
        run(Command::new("apt-get").args(options).args(["download", "--quiet", package]).current_dir(folder))
    };
    // A fresh machine may never have asked which packages there are; the lists are read beside its own.
    if fetch(&[]).is_err() {
        let lists = lists_beside(&folder.with_extension("apt"))?;
        run(Command::new("apt-get").args(&lists).args(["--quiet", "update"]))
            .context("ask which packages there are")?;
        fetch(&lists).context("install pgbouncer, or let `apt-get download` fetch it")?;
    }
    let came = fs::read_dir(folder).context("look what came")?.flatten().next();
    Ok(came.with_context(|| format!("no package came for {package}"))?.path())
}

/// What apt-get is told so that it keeps all it learns in a folder.
fn lists_beside(folder: &Path) -> anyhow::Result<Vec<String>> {
    let (lists, cache) = (folder.join("lists"), folder.join("cache"));
    for inner in [lists.join("partial"), cache.join("archives/partial")] {
        fs::create_dir_all(inner).context("make a folder")?;
    }
    let lists = format!("Dir::State::lists={}", lists.display());
    let cache = format!("Dir::Cache={}", cache.display());
    let user = "APT::Sandbox::User=root".to_owned();
    Ok([lists, cache, user].into_iter().flat_map(|option| ["-o".to_owned(), option]).collect())
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let done = command.output().with_context(|| format!("run {}", command.get_program().display()))?;
    ensure!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr).trim());
    Ok(())
}
