//! Tests of proofs that are shown as files.

use super::*;

#[tokio::test]
async fn the_agent_shows_a_file_and_inherits_the_token() {
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "my-token\n").unwrap();
    let proof_directory = directory.path().join("proofs");
    std::fs::create_dir(&proof_directory).unwrap();
    let containers = || Containers { container_with_files: Some("a".into()), ..Containers::running(&["a"]) };
    for inherit in [true, false] {
        let harness = Harness::with_file_proofs(containers(), &proof_directory, |config| {
            config.agents.inherit_token = inherit;
            config.gateway.token_file = Some(token.clone());
        });
        let (credentials, token) =
            enrol_by_proof(harness.connection(ADDRESS), &ProofMethod::File(proof_directory.clone())).await.unwrap();
        assert_eq!(token.as_ref().map(Secret::expose), inherit.then_some("my-token"));
        assert_eq!(credentials.certified_key.cert.len(), 2);
        assert!(credentials.remaining_validity(time::OffsetDateTime::now_utc()) > Duration::from_secs(3500));
        assert_eq!(std::fs::read_dir(&proof_directory).unwrap().count(), 0, "the proof file is removed");
    }
}

#[tokio::test]
async fn a_proof_file_on_a_mount_or_behind_a_link_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let real = directory.path().join("real");
    std::fs::create_dir(&real).unwrap();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&real, &link).unwrap();
    for (mounts, proof_directory, reason) in [
        (vec![directory.path().to_owned()], &real, RefusalReason::ProofMisplaced),
        (vec![real.clone()], &real, RefusalReason::ProofMisplaced),
        (vec![], &link, RefusalReason::ProofNotFound),
    ] {
        let containers = Containers { container_with_files: Some("a".into()), mounts, ..Containers::running(&["a"]) };
        let harness = Harness::with_file_proofs(containers, proof_directory, |_| {});
        match enrol_by_proof(harness.connection(ADDRESS), &ProofMethod::File(proof_directory.clone())).await {
            Err(enrol::Error::Refused(refused)) => assert_eq!(refused.error, reason),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_file_with_another_content_mode_or_time_proves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let made = std::time::UNIX_EPOCH + Duration::new(PROOF_MTIME.0 as u64, PROOF_MTIME.1);
    for (what, content, mode, mtime, expected) in [
        ("as it is made", "", PROOF_MODE, made, None),
        ("with content", "x", PROOF_MODE, made, Some(RefusalReason::ProofNotFound)),
        ("with an ordinary mode", "", 0o644, made, Some(RefusalReason::ProofNotFound)),
        (
            "of whole seconds",
            "",
            PROOF_MODE,
            std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000),
            Some(RefusalReason::ProofNotFound),
        ),
    ] {
        let containers = Containers { container_with_files: Some("a".into()), ..Containers::running(&["a"]) };
        let harness = Harness::with_file_proofs(containers, directory.path(), |_| {});
        let (csr, mut lines) = (Csr::new(), harness.connect(ADDRESS));
        let path = directory.path().join(csr.request(&mut lines).await);
        std::fs::write(&path, content).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        file.set_modified(mtime).unwrap();
        lines.send(&ProofShown::File { path }).await.unwrap();
        let answer = lines.receive::<Reply<Enrolled>>().await.unwrap();
        let refused = match answer {
            Reply::Refused(refused) => Some(refused.error),
            Reply::Next(_) => None,
        };
        assert_eq!(refused, expected, "{what}");
    }
}

#[tokio::test]
async fn a_file_is_no_proof_unless_agents_proofs_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let containers = Containers { container_with_files: Some("a".into()), ..Containers::running(&["a"]) };
    let harness = Harness::new(containers, |_| {});
    let method = ProofMethod::File(directory.path().to_owned());
    let refused = enrol_by_proof(harness.connection(ADDRESS), &method).await.unwrap_err();
    assert!(matches!(refused, enrol::Error::Kind(ProofKind::File)), "{refused:?}");
    // An agent that ignores the challenge's kinds is refused as well.
    let (csr, mut lines) = (Csr::new(), harness.connect(ADDRESS));
    let path = PathBuf::from(enrolment_protocol::PROOF_DIRECTORY).join(csr.request(&mut lines).await);
    lines.send(&ProofShown::File { path }).await.unwrap();
    let reply = lines.receive::<Reply<Enrolled>>().await.unwrap();
    assert!(matches!(reply, Reply::Refused(refused) if refused.error == RefusalReason::WrongProof));
}
