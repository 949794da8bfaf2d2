use std::os::unix::fs::PermissionsExt;

use age::secrecy::ExposeSecret;

use super::super::manifest::{Manifest, TenantManifest};
use super::*;
use crate::files::write_secret;
use crate::hub_size::HubSize;

struct Keys {
    folder: tempfile::TempDir,
    seal: Seal,
    opening: Opening,
}

fn identity(path: &Path) -> String {
    let key = age::x25519::Identity::generate();
    write_secret(path, format!("# made for a test\n{}\n", key.to_string().expose_secret()).as_bytes()).unwrap();
    key.to_public().to_string()
}

fn keys() -> Keys {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backup.key");
    let public = identity(&path);
    Keys { seal: Seal::Recipients(vec![public]), opening: Opening::IdentityFile(path), folder }
}

fn manifest() -> Manifest {
    Manifest {
        taken_ms: 1,
        release: "0.1.0".to_owned(),
        hub_servers: HubSize::One,
        accounts: vec![],
        streams: vec![],
        rows: std::collections::BTreeMap::new(),
        results: std::collections::BTreeMap::new(),
        parts: vec![],
    }
}

/// Larger than a piece, so that it is put together from several.
fn large() -> Vec<u8> {
    (0..PIECE_BYTES * 2 + 17).map(|number| (number % 251) as u8).collect()
}

fn write(path: &Path, seal: &Seal) -> Manifest {
    let mut archive = ArchiveWriter::<Manifest>::create(path, seal).unwrap();
    archive.add("home/a", 0o600, b"first").unwrap();
    archive.add("home/empty", 0o644, b"").unwrap();
    archive.begin("database", 0o600);
    for piece in large().chunks(10_000) {
        archive.write(piece).unwrap();
    }
    archive.end().unwrap();
    archive.finish(manifest()).unwrap()
}

type Parts = Vec<(String, Vec<u8>)>;

fn read(path: &Path, opening: &Opening) -> Result<(Manifest, Parts), ArchiveError> {
    let mut parts = Parts::new();
    let manifest = ArchiveReader::open(path, opening)?.read(&mut |name, part| {
        match part {
            Part::Begin { .. } => parts.push((name.to_owned(), vec![])),
            Part::Piece(piece) => parts.last_mut().unwrap().1.extend_from_slice(piece),
            Part::End => {}
        }
        Ok(())
    })?;
    Ok((manifest, parts))
}

#[test]
fn what_is_written_is_read_and_nothing_of_it_can_be_seen_from_outside() {
    let keys = keys();
    let path = keys.folder.path().join("backup");
    let written = write(&path, &keys.seal);
    let (manifest, parts) = read(&path, &keys.opening).unwrap();
    assert_eq!(manifest, written);
    let expected = [("home/a", b"first".to_vec()), ("home/empty", vec![]), ("database", large())];
    assert_eq!(parts, expected.map(|(name, bytes)| (name.to_owned(), bytes)));
    assert_eq!(manifest.parts.iter().map(|part| part.bytes).collect::<Vec<_>>(), [5, 0, large().len() as u64]);
    let bytes = std::fs::read(&path).unwrap();
    assert!(!bytes.windows(5).any(|window| window == b"first" || window == b"home/"));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let left = std::fs::read_dir(keys.folder.path()).unwrap().count();
    assert_eq!(left, 2, "a temporary file is left");
}

#[test]
fn a_passphrase_opens_what_it_sealed_and_another_one_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let (good, bad) = (folder.path().join("good"), folder.path().join("bad"));
    write_secret(&good, b"correct horse\n").unwrap();
    write_secret(&bad, b"battery staple\n").unwrap();
    let path = folder.path().join("backup");
    write(&path, &Seal::PassphraseFile(good.clone()));
    read(&path, &Opening::PassphraseFile(good.clone())).unwrap();
    let error = read(&path, &Opening::PassphraseFile(bad)).unwrap_err();
    assert!(matches!(error, ArchiveError::WrongKey { .. }), "{error:?}");
    std::fs::set_permissions(&good, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = read(&path, &Opening::PassphraseFile(good)).unwrap_err();
    assert!(matches!(error, ArchiveError::Seal(SealError::File(_))), "others can read it: {error:?}");
}

#[test]
fn another_key_a_foreign_file_and_a_taken_name_are_told_apart() {
    let keys = keys();
    let path = keys.folder.path().join("backup");
    write(&path, &keys.seal);
    let other = keys.folder.path().join("other.key");
    identity(&other);
    let error = read(&path, &Opening::IdentityFile(other)).unwrap_err();
    assert!(matches!(error, ArchiveError::WrongKey { .. }), "{error:?}");
    for foreign in [&b""[..], b"PK\x03\x04 something else entirely, and long enough for a head", &[0; 4_096]] {
        let file = keys.folder.path().join("foreign");
        std::fs::write(&file, foreign).unwrap();
        let error = read(&file, &keys.opening).unwrap_err();
        assert!(matches!(error, ArchiveError::Foreign { .. }), "{error:?}");
    }
    // Sealed for us, and something else all the same.
    let file = keys.folder.path().join("sealed");
    let mut sealed = keys.seal.wrap(BufWriter::new(File::create(&file).unwrap())).unwrap();
    std::io::Write::write_all(&mut sealed, &[b'x'; 2_000]).unwrap();
    std::io::Write::flush(&mut sealed.finish().unwrap()).unwrap();
    let error = read(&file, &keys.opening).unwrap_err();
    assert!(matches!(error, ArchiveError::Foreign { .. }), "{error:?}");
    let error = ArchiveWriter::<Manifest>::create(&path, &keys.seal).err().unwrap();
    assert!(matches!(error, ArchiveError::Exists(_)), "{error:?}");
}

#[test]
fn every_flipped_byte_and_every_cut_is_noticed() {
    let keys = keys();
    let path = keys.folder.path().join("backup");
    write(&path, &keys.seal);
    let good = std::fs::read(&path).unwrap();
    let file = keys.folder.path().join("damaged");
    let places = (0..260).chain((260..good.len()).step_by(good.len() / 60)).chain([good.len() - 1]);
    for place in places {
        let mut bytes = good.clone();
        bytes[place] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        assert!(read(&file, &keys.opening).is_err(), "a flipped byte at {place} went unseen");
    }
    for length in [0, 1, 100, 300, good.len() / 2, 65_536, good.len() - 1_000, good.len() - 1] {
        std::fs::write(&file, &good[..length]).unwrap();
        assert!(read(&file, &keys.opening).is_err(), "a cut at {length} went unseen");
    }
    std::fs::write(&file, [good.as_slice(), b"x"].concat()).unwrap();
    assert!(read(&file, &keys.opening).is_err(), "a byte more went unseen");
}

fn tenant_manifest() -> TenantManifest {
    TenantManifest {
        taken_ms: 1,
        release: "0.1.0".to_owned(),
        tenant: "acme-corp".parse().unwrap(),
        tenant_id: uuid::Uuid::nil(),
        display_name: "Acme".to_owned(),
        plan: "pro".to_owned(),
        isolation: "shared".to_owned(),
        schema_version: 3,
        sites: vec!["oslo".to_owned()],
        pollers: vec![],
        tables: std::collections::BTreeMap::new(),
        parts: vec![],
    }
}

/// Without a seal nobody's hand is noticed that mends manifest and checksum as well; an accident is, wherever it matters.
#[test]
fn what_is_not_sealed_is_whole_or_refused_and_needs_no_key() {
    let keys = keys();
    let [open, sealed, file] = ["open", "sealed", "x"].map(|name| keys.folder.path().join(name));
    write(&sealed, &keys.seal);
    let mut archive = ArchiveWriter::<TenantManifest>::create(&open, &Seal::Open).unwrap();
    archive.add("rows/site.csv", 0o600, b"name\noslo\n").unwrap();
    let written = archive.finish(tenant_manifest()).unwrap();
    let read = |path: &Path| -> Result<(TenantManifest, Vec<u8>), ArchiveError> {
        let mut rows = Vec::new();
        let manifest = ArchiveReader::<TenantManifest>::open(path, &Opening::Open)?.read(&mut |name, part| {
            rows.extend_from_slice(name.as_bytes());
            if let Part::Piece(piece) = part {
                rows.extend_from_slice(piece);
            }
            Ok(())
        })?;
        Ok((manifest, rows))
    };
    let good = read(&open).unwrap();
    assert_eq!(good.0, written);
    let bytes = std::fs::read(&open).unwrap();
    for place in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[place] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let found = read(&file);
        assert!(
            found.is_err() || found.is_ok_and(|found| found == good),
            "a flipped byte at {place} changed something"
        );
    }
    for length in [0, 1, 600, bytes.len() / 2, bytes.len() - 1_500] {
        std::fs::write(&file, &bytes[..length]).unwrap();
        assert!(read(&file).is_err(), "a cut at {length} went unseen");
    }
    std::fs::write(&file, [&*bytes, b"x"].concat()).unwrap();
    assert!(matches!(read(&file).unwrap_err(), ArchiveError::Different { .. }), "a byte more");
    assert!(matches!(read(&sealed).unwrap_err(), ArchiveError::Sealed { .. }));
    let error = ArchiveReader::<TenantManifest>::open(&open, &keys.opening).err().unwrap();
    assert!(matches!(error, ArchiveError::Foreign { .. }));
}

#[test]
fn a_platforms_backup_is_not_a_tenants() {
    let keys = keys();
    let path = keys.folder.path().join("backup");
    write(&path, &Seal::Open);
    let error = ArchiveReader::<TenantManifest>::open(&path, &Opening::Open).unwrap().read(&mut |_, _| Ok(()));
    let error = error.unwrap_err().to_string();
    assert!(error.ends_with("is not a backup of a tenant"), "{error}");
}

#[test]
fn a_newer_form_a_wrong_manifest_and_a_missing_one_are_refused() {
    let keys = keys();
    let path = keys.folder.path().join("backup");
    let mut archive = ArchiveWriter::<Manifest>::create(&path, &keys.seal).unwrap();
    archive.add("home/a", 0o600, b"first").unwrap();
    archive.parts[0].sha256.replace_range(0..1, "x");
    archive.finish(manifest()).unwrap();
    let error = read(&path, &keys.opening).unwrap_err();
    assert!(matches!(error, ArchiveError::Different { .. }), "{error:?}");

    let file = keys.folder.path().join("newer");
    let sealed = keys.seal.wrap(BufWriter::new(File::create(&file).unwrap())).unwrap();
    let mut tar = tar::Builder::new(sealed);
    let mut header = tar::Header::new_gnu();
    let head = br#"{"bulkhead_backup":2,"release":"9.9.9","more":true}"#;
    header.set_size(head.len() as u64);
    tar.append_data(&mut header, HEAD, &head[..]).unwrap();
    std::io::Write::flush(&mut tar.into_inner().unwrap().finish().unwrap()).unwrap();
    let error = read(&file, &keys.opening).unwrap_err();
    assert!(error.to_string().contains("format 2") && error.to_string().contains("9.9.9"), "{error}");

    let file = keys.folder.path().join("without");
    let mut archive = ArchiveWriter::<Manifest>::create(&file, &keys.seal).unwrap();
    archive.add("home/a", 0o600, b"first").unwrap();
    let part = archive.temporary.0.take().unwrap();
    let ArchiveWriter { tar, .. } = archive;
    std::io::Write::flush(&mut tar.into_inner().unwrap().finish().unwrap()).unwrap();
    let error = read(&part, &keys.opening).unwrap_err();
    assert!(matches!(error, ArchiveError::Damaged { .. }), "{error:?}");
}

#[test]
fn a_backup_that_is_not_finished_leaves_no_file() {
    let keys = keys();
    let path = keys.folder.path().join("backup");
    let mut archive = ArchiveWriter::<Manifest>::create(&path, &keys.seal).unwrap();
    archive.add("home/a", 0o600, &large()).unwrap();
    drop(archive);
    assert_eq!(std::fs::read_dir(keys.folder.path()).unwrap().count(), 1, "only the key is left");
    let seal = Seal::Recipients(vec!["age1nonsense".to_owned()]);
    assert!(ArchiveWriter::<Manifest>::create(&path, &seal).is_err());
    assert!(ArchiveWriter::<Manifest>::create(&path, &Seal::Recipients(vec![])).is_err());
    assert_eq!(std::fs::read_dir(keys.folder.path()).unwrap().count(), 1, "only the key is left");
}
