//! Tests of the recently settled messages that the status page shows.

use super::*;

fn settled<'a>(disposition: &'a Disposition, reason: Option<&'a str>) -> SettledDelivery<'a> {
    SettledDelivery {
        message_id: Some("m-1"),
        has_id: true,
        reference: None,
        rule: None,
        disposition,
        settlement: &Settlement::Ack,
        attempts: 1,
        round: 0,
        reason,
        duration: Duration::from_millis(5),
        is_gone: false,
        at: Timestamp::UNIX_EPOCH,
        published: None,
    }
}

#[test]
fn recent_message_has_the_reason_of_its_retry_and_none_when_created() {
    let telemetry = Telemetry::new("/", "q", Timestamp::UNIX_EPOCH);
    telemetry.settled(&settled(&Disposition::Retry(Duration::from_secs(10)), Some("the CRM answered HTTP 503")));
    telemetry.settled(&settled(&Disposition::Ack, Some("the CRM answered HTTP 503")));
    let reasons: Vec<_> = telemetry.recent().into_iter().map(|recent| (recent.outcome, recent.reason)).collect();
    let retried = ("retried".to_owned(), Some("the CRM answered HTTP 503".to_owned()));
    assert_eq!(reasons, [("created".to_owned(), None), retried]);
}
