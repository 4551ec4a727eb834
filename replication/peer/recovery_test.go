package peer

import (
	"errors"
	"testing"

	storage "github.com/storaged/storaged"
)

// TestOtherRecoveriesAreRefused: members that follow different recoveries of the cluster exchange nothing, whoever dials, also when one of
// the two is of a build that knows no recoveries: it says 0 and accepts everyone. Gateways follow none. Guards: hello.follows, and the case
// of hello.refusal.
func TestOtherRecoveriesAreRefused(t *testing.T) {
	member := hello{layout: helloLayout, lane: Data, code: helloPart, cluster: testCluster, from: 9, to: 2, nonce: 1, speaks: known}
	for _, c := range []struct{ dials, answers uint32 }{{0, 7}, {7, 0}, {7, 8}} {
		sent := member
		sent.recovery = c.dials
		for _, code := range []helloCode{helloOtherRecovery, helloAccepted} { // accepted by a build that does not look
			answer := hello{layout: helloLayout, lane: Data, code: code, cluster: testCluster, from: 2, to: 9, nonce: 1, speaks: known, recovery: c.answers}
			err := answer.refusal(sent)
			other := (*RecoveryError)(nil)
			if storage.KindOf(err) != storage.KindPermission || !errors.As(err, &other) || other.Own != c.dials || other.Peer != c.answers {
				t.Errorf("%d dials %d, which answers with code %d: %v", c.dials, c.answers, code, err)
			}
		}
	}
	stranger := member
	stranger.from, stranger.code = 0, helloLone
	answer := hello{layout: helloLayout, lane: Data, code: helloAccepted, cluster: testCluster, from: 2, nonce: 1, speaks: known, recovery: 7}
	if err := answer.refusal(stranger); err != nil {
		t.Errorf("a node without an id asks one that was recovered: %v", err)
	}
}
