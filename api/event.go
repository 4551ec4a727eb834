package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	storage "github.com/storaged/storaged"
	pb "github.com/storaged/storaged/proto/storage/v1"
)

// MaxEventKinds bounds EventFilter.Kinds.
const MaxEventKinds = 64

// maxEventNameBytes bounds the names in an EventFilter.
const maxEventNameBytes = 1024

// EventFilter says which events are wanted. All that is set must fit.
type EventFilter struct {
	// After is the number of the event after which to go on, the oldest first; 0: the newest.
	After uint64
	// Limit bounds how many; 0: MaxPageSize, which is also the most.
	Limit int
	// Node is a node's id, or the name that it had. Events that happened because of it fit, too.
	Node   string
	Group  storage.GroupID
	Volume string // the name that it had
	Kinds  []storage.EventKind
	// Severity is the least; empty: any.
	Severity storage.EventSeverity
	Since    time.Time // not before
}

// Matches reports whether the event fits, whatever its number.
func (f *EventFilter) Matches(e storage.Event) bool {
	named := func(id storage.NodeID, name string) bool { return id != 0 && (f.Node == name || f.Node == id.String()) }
	switch {
	case f.Node != "" && !named(e.Node, e.NodeName) && !named(e.Other, e.OtherName):
	case f.Group != 0 && f.Group != e.Group:
	case f.Volume != "" && f.Volume != e.VolumeName:
	case len(f.Kinds) > 0 && !slices.Contains(f.Kinds, e.Kind):
	case e.At.Before(f.Since):
	default:
		return f.Severity == "" || severityRank(e.Severity()) >= severityRank(f.Severity)
	}
	return false
}

func severityRank(s storage.EventSeverity) int {
	return slices.Index([]storage.EventSeverity{storage.SeverityInfo, storage.SeverityWarning, storage.SeverityError}, s)
}

// Event is an event with what is said of it.
type Event struct {
	storage.Event

	Severity storage.EventSeverity
	Text     string
}

// Events are those that were asked for, by ascending number.
type Events struct {
	Events []Event
	// Next is the number to go on after.
	Next uint64
	// Gap: events were forgotten that may have followed EventFilter.After.
	Gap bool
	// Kept: the cluster keeps events; otherwise its version is too old.
	Kept bool
}

// Select returns those of all events that the filter wants; all are by ascending number, and last is the number of the newest that there was.
func (f *EventFilter) Select(all []storage.Event, last uint64) Events {
	limit := f.Limit
	if limit <= 0 || limit > MaxPageSize {
		limit = MaxPageSize
	}
	out := Events{Next: last, Kept: true}
	var fit []storage.Event
	before := f.After
	for _, e := range all {
		if e.Seq <= f.After {
			continue
		}
		if f.After != 0 && e.Seq != before+1 { // numbers are given out one by one
			out.Gap = true
		}
		if before = e.Seq; !f.Matches(e) {
			continue
		}
		if fit = append(fit, e); f.After != 0 && len(fit) == limit {
			out.Next = e.Seq
			break
		}
	}
	out.Events = Each(fit[max(0, len(fit)-limit):], func(e storage.Event) Event { return Event{e, e.Severity(), e.Text()} })
	return out
}

// events implements the service Events.
type events struct {
	pb.UnimplementedEventsServer
	cluster Cluster
}

// List implements pb.EventsServer.
func (s *events) List(ctx context.Context, r *pb.ListEventsRequest) (*pb.ListEventsResponse, error) {
	f := EventFilter{After: r.GetAfterSeq(), Limit: int(min(r.GetLimit(), MaxPageSize)), Node: r.GetNode(), Group: storage.GroupID(r.GetGroup()), Volume: r.GetVolume(),
		Since: TimeFromProto(r.GetSince())}
	fail := func(text string) (*pb.ListEventsResponse, error) {
		return nil, storage.E("list events", storage.KindInvalid, "", errors.New(text))
	}
	if len(r.GetKinds()) > MaxEventKinds {
		return fail("the request names too many kinds")
	}
	if max(len(f.Node), len(f.Volume)) > maxEventNameBytes {
		return fail(fmt.Sprintf("the request names a node or a volume with more than %d bytes; none has such a name", maxEventNameBytes))
	}
	f.Kinds = Each(r.GetKinds(), eventKinds.FromProto)
	if slices.Contains(f.Kinds, enumUnknown) {
		return fail("the request names a kind of events that this version does not know")
	}
	if r.GetSeverity() != 0 {
		f.Severity = eventSeverities.FromProto(r.GetSeverity())
	}
	if f.Severity == enumUnknown {
		return fail("the request names a severity that this version does not know")
	}
	list, err := s.cluster.Events(ctx, f)
	return &pb.ListEventsResponse{Events: Each(list.Events, eventToProto), NextAfterSeq: list.Next, Gap: list.Gap, Kept: list.Kept}, err
}

// EventFilterToProto returns the message.
func EventFilterToProto(f EventFilter) *pb.ListEventsRequest {
	return &pb.ListEventsRequest{AfterSeq: f.After, Limit: uint32(max(0, f.Limit)), Node: f.Node, Group: uint32(f.Group), Volume: f.Volume,
		Kinds: Each(f.Kinds, eventKinds.ToProto), Severity: eventSeverities.ToProto(f.Severity), Since: TimeToProto(f.Since)}
}

// EventsFromProto reads the message.
func EventsFromProto(r *pb.ListEventsResponse) Events {
	return Events{Events: Each(r.GetEvents(), eventFromProto), Next: r.GetNextAfterSeq(), Gap: r.GetGap(), Kept: r.GetKept()}
}

func eventToProto(e Event) *pb.Event {
	p := &pb.Event{Seq: e.Seq, At: TimeToProto(e.At), Kind: eventKinds.ToProto(e.Kind), Severity: eventSeverities.ToProto(e.Severity), Text: toValidUTF8(e.Text),
		Node: uint32(e.Node), NodeName: e.NodeName, Cause: eventCauses.ToProto(e.Cause), Other: uint32(e.Other), OtherName: e.OtherName, Group: uint32(e.Group),
		Volume: uint64(e.Volume), VolumeName: e.VolumeName, Holder: e.Holder, SizeBytes: e.SizeBytes, Count: e.Count, Until: TimeToProto(e.Until)}
	if !e.Store.IsZero() {
		p.Store = e.Store.String()
	}
	return p
}

func eventFromProto(p *pb.Event) Event {
	e := storage.Event{Seq: p.GetSeq(), At: TimeFromProto(p.GetAt()), Kind: eventKinds.FromProto(p.GetKind()), Node: storage.NodeID(p.GetNode()), NodeName: p.GetNodeName(),
		Other: storage.NodeID(p.GetOther()), OtherName: p.GetOtherName(), Group: storage.GroupID(p.GetGroup()), Volume: storage.VolumeID(p.GetVolume()),
		VolumeName: p.GetVolumeName(), Holder: p.GetHolder(), SizeBytes: p.GetSizeBytes(), Count: p.GetCount(), Until: TimeFromProto(p.GetUntil())}
	if p.GetCause() != 0 {
		e.Cause = eventCauses.FromProto(p.GetCause())
	}
	e.Store, _ = storage.ParseStoreID(p.GetStore()) // zero: of none
	return Event{e, eventSeverities.FromProto(p.GetSeverity()), p.GetText()}
}

var eventSeverities = EnumTable[storage.EventSeverity, pb.EventSeverity]{
	{storage.SeverityInfo, pb.EventSeverity_EVENT_SEVERITY_INFO},
	{storage.SeverityWarning, pb.EventSeverity_EVENT_SEVERITY_WARNING},
	{storage.SeverityError, pb.EventSeverity_EVENT_SEVERITY_ERROR},
}

var eventCauses = EnumTable[storage.EventCause, pb.EventCause]{
	{storage.CauseDown, pb.EventCause_EVENT_CAUSE_DOWN},
	{storage.CauseDrain, pb.EventCause_EVENT_CAUSE_DRAIN},
	{storage.CauseMissing, pb.EventCause_EVENT_CAUSE_MISSING},
	{storage.CauseBalance, pb.EventCause_EVENT_CAUSE_BALANCE},
	{storage.CauseRecovery, pb.EventCause_EVENT_CAUSE_RECOVERY},
}

var eventKinds = EnumTable[storage.EventKind, pb.EventKind]{
	{storage.EventNodeJoined, pb.EventKind_EVENT_KIND_NODE_JOINED},
	{storage.EventNodeSuspect, pb.EventKind_EVENT_KIND_NODE_SUSPECT},
	{storage.EventNodeDown, pb.EventKind_EVENT_KIND_NODE_DOWN},
	{storage.EventNodeBack, pb.EventKind_EVENT_KIND_NODE_BACK},
	{storage.EventNodeRemoved, pb.EventKind_EVENT_KIND_NODE_REMOVED},
	{storage.EventDrainBegun, pb.EventKind_EVENT_KIND_DRAIN_BEGUN},
	{storage.EventDrained, pb.EventKind_EVENT_KIND_DRAINED},
	{storage.EventDrainEnded, pb.EventKind_EVENT_KIND_DRAIN_ENDED},
	{storage.EventMaintenanceBegun, pb.EventKind_EVENT_KIND_MAINTENANCE_BEGUN},
	{storage.EventMaintenanceEnded, pb.EventKind_EVENT_KIND_MAINTENANCE_ENDED},
	{storage.EventGroupAdded, pb.EventKind_EVENT_KIND_GROUP_ADDED},
	{storage.EventReplicaPlanned, pb.EventKind_EVENT_KIND_REPLICA_PLANNED},
	{storage.EventReplicaAdded, pb.EventKind_EVENT_KIND_REPLICA_ADDED},
	{storage.EventReplicaStays, pb.EventKind_EVENT_KIND_REPLICA_STAYS},
	{storage.EventReplicaLeaving, pb.EventKind_EVENT_KIND_REPLICA_LEAVING},
	{storage.EventReplicaRemoved, pb.EventKind_EVENT_KIND_REPLICA_REMOVED},
	{storage.EventReplicaGivenUp, pb.EventKind_EVENT_KIND_REPLICA_GIVEN_UP},
	{storage.EventGroupWhole, pb.EventKind_EVENT_KIND_GROUP_WHOLE},
	{storage.EventVolumeCreated, pb.EventKind_EVENT_KIND_VOLUME_CREATED},
	{storage.EventVolumeResized, pb.EventKind_EVENT_KIND_VOLUME_RESIZED},
	{storage.EventVolumeDeleted, pb.EventKind_EVENT_KIND_VOLUME_DELETED},
	{storage.EventVolumeTaken, pb.EventKind_EVENT_KIND_VOLUME_TAKEN_OVER},
	{storage.EventVolumeDetached, pb.EventKind_EVENT_KIND_VOLUME_DETACHED},
	{storage.EventRecovered, pb.EventKind_EVENT_KIND_RECOVERED},
}
