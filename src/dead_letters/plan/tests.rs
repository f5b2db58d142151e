//! Tests of the plan: what it counts, and what it leaves out.

use super::*;

fn candidate(fingerprint: u128, id: Option<&str>) -> Candidate {
    Candidate {
        fingerprint,
        source: Source::Dead,
        id: id.unwrap_or("replay-x").into(),
        has_id: id.is_some(),
        replayed_before: false,
        possibly_created: false,
        is_from_broker: false,
        digests: vec![[0; 32]],
        refused: None,
        is_skipped: false,
        is_found_in_crm: false,
    }
}

#[test]
fn plan_of_identical_messages_counts_one_task() {
    let all = [(1, None), (2, None), (1, None), (1, None), (3, Some("c")), (3, Some("c"))];
    let plan = ActionPlan::discard(&all.map(|(print, id)| candidate(print, id)));
    assert_eq!((plan.count(), plan.without_id, plan.alike, plan.tasks), (6, 4, 3, 4));
}

#[tokio::test]
async fn plan_leaves_messages_in_doubt_out_and_reports_refused_ones() {
    let unavailable = LedgerAccess::Unavailable("no ledger".to_owned());
    let candidates = || {
        let doubtful = Candidate { possibly_created: true, ..candidate(1, Some("a")) };
        let refused = Candidate { refused: Some("name: is missing".to_owned()), ..candidate(2, Some("b")) };
        vec![doubtful, refused, candidate(3, Some("c"))]
    };
    let plan = ActionPlan::replay(candidates(), &unavailable, ReplayOptions::default()).await;
    assert_eq!((plan.count(), plan.in_doubt, plan.ledger_error.as_deref()), (1, 0, Some("no ledger")));
    assert_eq!(plan.staying(ExclusionReason::InDoubt).0, 1);
    assert_eq!((plan.staying(ExclusionReason::Refused).0, plan.refused.as_deref()), (1, Some("name: is missing")));
    let options = ReplayOptions { allows_in_doubt: true, allows_refused: true, has_new_id: false };
    let plan = ActionPlan::replay(candidates(), &unavailable, options).await;
    assert_eq!((plan.count(), plan.in_doubt, plan.refused_again), (3, 1, 1));
}

#[tokio::test]
async fn replay_of_refused_messages_costs_no_calls() {
    let unavailable = LedgerAccess::Unavailable("no ledger".to_owned());
    let refused = |print, id| Candidate { refused: Some("name: is missing".to_owned()), ..candidate(print, id) };
    let all = vec![refused(1, Some("a")), refused(2, None), refused(2, None), candidate(3, Some("c"))];
    let options = ReplayOptions { allows_refused: true, ..ReplayOptions::default() };
    let plan = ActionPlan::replay(all, &unavailable, options).await;
    assert_eq!((plan.count(), plan.refused_again, plan.tasks), (4, 3, 1));
    assert!(plan.warnings().iter().any(|line| line.starts_with("1 call of the CRM's")), "{:?}", plan.warnings());
}

#[tokio::test]
async fn replay_of_skipped_messages_costs_no_calls() {
    let unavailable = LedgerAccess::Unavailable("no ledger".to_owned());
    let mut skipped = candidate(1, Some("a"));
    skipped.note(&Preview { result: Replayed::Skipped, ..Preview::unknown("") });
    let plan = ActionPlan::replay(vec![skipped, candidate(2, Some("b"))], &unavailable, ReplayOptions::default()).await;
    assert_eq!((plan.count(), plan.skipped, plan.tasks), (2, 1, 1));
    assert!(plan.warnings().iter().any(|line| line.starts_with("1 of them is skipped")), "{:?}", plan.warnings());
}

#[tokio::test]
async fn message_whose_task_somebody_found_is_never_replayed() {
    let unavailable = LedgerAccess::Unavailable("no ledger".to_owned());
    let found = Candidate { possibly_created: true, is_found_in_crm: true, ..candidate(1, Some("a")) };
    let doubtful = Candidate { possibly_created: true, ..candidate(2, Some("b")) };
    let options = ReplayOptions { allows_in_doubt: true, allows_refused: true, has_new_id: false };
    let plan = ActionPlan::replay(vec![found, doubtful], &unavailable, options).await;
    assert_eq!((plan.fingerprints(), plan.staying(ExclusionReason::FoundInCrm).0), (HashSet::from([2]), 1));
    let discarded = Candidate { is_found_in_crm: true, ..candidate(1, Some("a")) };
    assert_eq!(ActionPlan::discard(&[discarded]).count(), 1, "it can be discarded");
}
