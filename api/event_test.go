package api

import (
	"reflect"
	"slices"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
)

// TestEventsOnTheWire: every kind, severity and cause has a word in messages, and an event comes back as it was.
func TestEventsOnTheWire(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i, k := range storage.EventKinds() {
		e := storage.Event{Seq: uint64(i + 1), At: at, Kind: k, Node: 1, NodeName: "a", Cause: storage.CauseDown, Other: 2, OtherName: "b", Group: 3, Store: storage.StoreID{4},
			Volume: 5, VolumeName: "v", Holder: "h", SizeBytes: 6, Count: 7, Until: at.Add(time.Hour)}
		want := Event{e, e.Severity(), e.Text()}
		if got := eventFromProto(eventToProto(want)); !reflect.DeepEqual(got, want) || want.Text == "" {
			t.Errorf("%+v comes back as %+v", want, got)
		}
	}
	for _, c := range []storage.EventCause{storage.CauseNone, storage.CauseDrain, storage.CauseMissing, storage.CauseBalance, storage.CauseRecovery} {
		e := Event{Event: storage.Event{Kind: storage.EventNodeDown, Cause: c}, Severity: storage.SeverityInfo}
		if got := eventFromProto(eventToProto(e)); !reflect.DeepEqual(got, e) {
			t.Errorf("%+v comes back as %+v", e, got)
		}
	}
}

// TestEventsSelected: what is asked for is answered, from the newest backwards or from a number on, and who was away for long is told that
// something is missing.
func TestEventsSelected(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var all []storage.Event
	for seq := uint64(11); seq <= 20; seq++ {
		e := storage.Event{Seq: seq, At: at.Add(time.Duration(seq) * time.Minute), Kind: storage.EventNodeBack, Node: 1, NodeName: "a"}
		if seq%2 == 0 {
			e = storage.Event{Seq: seq, At: e.At, Kind: storage.EventReplicaPlanned, Group: 3, Node: 2, NodeName: "b", Cause: storage.CauseDown, Other: 1, OtherName: "a"}
		}
		all = append(all, e)
	}
	for name, c := range map[string]struct {
		f    EventFilter
		want []uint64
		next uint64
		gap  bool
	}{
		"the newest":        {EventFilter{Limit: 3}, []uint64{18, 19, 20}, 20, false},
		"from a number on":  {EventFilter{After: 12, Limit: 3}, []uint64{13, 14, 15}, 15, false},
		"the rest":          {EventFilter{After: 18}, []uint64{19, 20}, 20, false},
		"nothing new":       {EventFilter{After: 20}, nil, 20, false},
		"after none":        {EventFilter{After: 10, Limit: 1}, []uint64{11}, 11, false},
		"after a gap":       {EventFilter{After: 9, Limit: 1}, []uint64{11}, 11, true},
		"because of a node": {EventFilter{Node: "1", Limit: 2}, []uint64{19, 20}, 20, false},
		"of a node":         {EventFilter{Node: "b", After: 10, Limit: 2}, []uint64{12, 14}, 14, false},
		"of a group":        {EventFilter{Group: 3, After: 17}, []uint64{18, 20}, 20, false},
		"of a kind":         {EventFilter{Kinds: []storage.EventKind{storage.EventNodeBack}, After: 16}, []uint64{17, 19}, 20, false},
		"at least":          {EventFilter{Severity: storage.SeverityWarning, After: 17}, []uint64{18, 20}, 20, false},
		"not before":        {EventFilter{Since: at.Add(19 * time.Minute)}, []uint64{19, 20}, 20, false},
		"of no volume":      {EventFilter{Volume: "v"}, nil, 20, false},
	} {
		got := c.f.Select(all, 20)
		seqs := Each(got.Events, func(e Event) uint64 { return e.Seq })
		if !slices.Equal(seqs, c.want) || got.Next != c.next || got.Gap != c.gap {
			t.Errorf("%s: %v, next %d, gap %v; want %v, next %d, gap %v", name, seqs, got.Next, got.Gap, c.want, c.next, c.gap)
		}
	}
}
