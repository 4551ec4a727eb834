package recovery

import (
	"slices"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication"
)

func survivor(self storage.NodeID, voters ...storage.NodeID) replication.Survivor {
	key := func(n storage.NodeID) storage.ReplicaKey {
		return storage.ReplicaKey{Store: storage.StoreID{byte(n)}, Incarnation: 1}
	}
	s := replication.Survivor{Group: 3, Key: key(self), Index: 9, Term: 2}
	for _, v := range voters {
		s.Voters = append(s.Voters, replication.SurvivingMember{Node: v, Key: key(v)})
	}
	return s
}

// TestJudge: a replica goes on alone only where it votes and no other voter is left, or where people say so and there is no majority.
func TestJudge(t *testing.T) {
	damaged := survivor(1, 1, 2, 3)
	damaged.Damaged = "its log is damaged"
	for name, c := range map[string]struct {
		s       replication.Survivor
		lost    []storage.NodeID
		promote bool
		want    Fate
	}{
		"all are left":                {survivor(1, 1, 2, 3), nil, false, GoesOn},
		"two of three are left":       {survivor(1, 1, 2, 3), []storage.NodeID{3}, false, GoesOn},
		"a majority, and promoted":    {survivor(1, 1, 2, 3), []storage.NodeID{3}, true, GoesOn},
		"one of three is left":        {survivor(1, 1, 2, 3), []storage.NodeID{2, 3}, false, Alone},
		"it is alone already":         {survivor(1, 1), []storage.NodeID{2, 3}, false, GoesOn},
		"two of five are left":        {survivor(1, 1, 2, 3, 4, 5), []storage.NodeID{3, 4, 5}, false, Undecided},
		"two of five, this is chosen": {survivor(1, 1, 2, 3, 4, 5), []storage.NodeID{3, 4, 5}, true, Alone},
		"half of two":                 {survivor(1, 1, 2), []storage.NodeID{2}, false, Alone},
		"a learner":                   {survivor(4, 1, 2, 3), []storage.NodeID{1, 2, 3}, false, Without},
		"a learner, promoted":         {survivor(4, 1, 2, 3), []storage.NodeID{1, 2, 3}, true, Without},
		"damaged":                     {damaged, []storage.NodeID{2, 3}, false, Without},
		"never brought up":            {survivor(1), nil, false, Without},
	} {
		if got := judge(c.s, c.lost, c.promote); got.Fate != c.want {
			t.Errorf("%s: %s (%s), want %s", name, got.Fate, got.Why, c.want)
		}
	}
}

// TestToken: what the first node says is what the others understand, and nothing else is.
func TestToken(t *testing.T) {
	r := Recovery{number: 0x1f, lost: []storage.NodeID{2, 3}}
	if got := r.Token(); got != "0000001f:2,3" {
		t.Errorf("it says %q", got)
	}
	for _, lost := range [][]storage.NodeID{{2, 3}, nil} {
		r.lost = lost
		n, ids, err := parseToken(r.Token())
		if err != nil || n != r.number || !slices.Equal(ids, lost) {
			t.Errorf("%q is understood as %08x, %v, %v", r.Token(), n, ids, err)
		}
	}
	for _, text := range []string{"", "1f:2", "00000000:2", "0000001f", "0000001f:x", "0000001f:0", "000000001f:2", "0000001g:2", "-000001f:2"} {
		if _, _, err := parseToken(text); storage.KindOf(err) != storage.KindInvalid {
			t.Errorf("%q is understood: %v", text, err)
		}
	}
}
