package storage

import (
	"fmt"
	"time"
)

// EventKind says what has happened. storagectl prints it to programs as it stands.
type EventKind string

// The kinds of events. Those of nodes name the node, those of replicas the group and the node, those of volumes the volume.
const (
	EventNodeJoined  EventKind = "node-joined"
	EventNodeSuspect EventKind = "node-suspect"
	EventNodeDown    EventKind = "node-down"
	// EventNodeBack: a node that was suspect or down is heard again.
	EventNodeBack EventKind = "node-back"
	// EventNodeRemoved: for ever. With CauseRecovery it was lost, and the cluster was recovered without it.
	EventNodeRemoved EventKind = "node-removed"
	EventDrainBegun  EventKind = "drain-begun"
	// EventDrained: the last replica has left a node that drains.
	EventDrained    EventKind = "drained"
	EventDrainEnded EventKind = "drain-ended"
	// EventMaintenanceBegun: it lasts until Event.Until; again when people change that.
	EventMaintenanceBegun EventKind = "maintenance-begun"
	EventMaintenanceEnded EventKind = "maintenance-ended"

	EventGroupAdded EventKind = "group-added"
	// EventReplicaPlanned: a node begins to pull what the group holds; Cause says why.
	EventReplicaPlanned EventKind = "replica-planned"
	// EventReplicaAdded: the replica votes.
	EventReplicaAdded EventKind = "replica-added"
	// EventReplicaStays: it was to leave, and votes on: what was to take its place is lost, or can be had nowhere.
	EventReplicaStays EventKind = "replica-stays"
	// EventReplicaLeaving: it is to be taken out of the group; Cause says why.
	EventReplicaLeaving EventKind = "replica-leaving"
	EventReplicaRemoved EventKind = "replica-removed"
	// EventReplicaGivenUp: a replica that was still pulling is not wanted any more.
	EventReplicaGivenUp EventKind = "replica-given-up"
	// EventGroupWhole: the group has as many voters on nodes that are up as it is meant to have, after it had fewer.
	EventGroupWhole EventKind = "group-whole"

	EventVolumeCreated EventKind = "volume-created"
	EventVolumeResized EventKind = "volume-resized"
	EventVolumeDeleted EventKind = "volume-deleted"
	// EventVolumeTaken: a holder has got the volume, and another one has lost it.
	EventVolumeTaken EventKind = "volume-taken-over"
	// EventVolumeDetached: a holder has lost the volume before it had closed it.
	EventVolumeDetached EventKind = "volume-detached"

	// EventRecovered: the cluster goes on from the catalog of one node; Count nodes were lost.
	EventRecovered EventKind = "recovered"
)

// EventKinds returns all kinds, in the order in which they are listed here.
func EventKinds() []EventKind {
	return []EventKind{
		EventNodeJoined,
		EventNodeSuspect,
		EventNodeDown,
		EventNodeBack,
		EventNodeRemoved,
		EventDrainBegun,
		EventDrained,
		EventDrainEnded,
		EventMaintenanceBegun,
		EventMaintenanceEnded,
		EventGroupAdded,
		EventReplicaPlanned,
		EventReplicaAdded,
		EventReplicaStays,
		EventReplicaLeaving,
		EventReplicaRemoved,
		EventReplicaGivenUp,
		EventGroupWhole,
		EventVolumeCreated,
		EventVolumeResized,
		EventVolumeDeleted,
		EventVolumeTaken,
		EventVolumeDetached,
		EventRecovered,
	}
}

// EventClass is what an event is about.
type EventClass uint8

// The classes.
const (
	ClassNode EventClass = iota // or the cluster
	ClassGroup
	ClassVolume
	EventClasses = iota
)

// Class returns what the event is about.
func (e Event) Class() EventClass {
	switch {
	case e.Volume != 0:
		return ClassVolume
	case e.Group != 0:
		return ClassGroup
	}
	return ClassNode
}

// EventCause is why replicas come and go.
type EventCause string

// The causes. Event.Other names the node, if it is because of one.
const (
	CauseNone EventCause = ""
	// CauseDown: a node of the group is down or suspect.
	CauseDown EventCause = "down"
	// CauseDrain: a node of the group drains.
	CauseDrain EventCause = "drain"
	// CauseMissing: the group has fewer voters than it is meant to have.
	CauseMissing EventCause = "missing"
	// CauseBalance: the group has all that it needs, and another place is better.
	CauseBalance EventCause = "balance"
	// CauseRecovery: the cluster was recovered without the node.
	CauseRecovery EventCause = "recovery"
)

// EventSeverity says how much an event wants a person.
type EventSeverity string

// The severities, in their order.
const (
	SeverityInfo    EventSeverity = "info"
	SeverityWarning EventSeverity = "warning"
	// SeverityError: something is lost, or not served as it should be.
	SeverityError EventSeverity = "error"
)

// Event is something that has happened in the cluster. Names are those of the time: an object may have another by now, or be gone.
type Event struct {
	// Seq ascends from 1 and is never used twice.
	Seq uint64 `json:"seq"`
	// At is by the clock of the node that led the catalog.
	At   time.Time `json:"at"`
	Kind EventKind `json:"kind"`

	Node       NodeID     `json:"node,omitempty"`
	NodeName   string     `json:"node_name,omitempty"`
	Cause      EventCause `json:"cause,omitempty"`
	Other      NodeID     `json:"other,omitempty"` // the node that Cause is about
	OtherName  string     `json:"other_name,omitempty"`
	Group      GroupID    `json:"group,omitempty"`
	Store      StoreID    `json:"store,omitzero"`
	Volume     VolumeID   `json:"volume,omitempty"`
	VolumeName string     `json:"volume_name,omitempty"`
	Holder     string     `json:"holder,omitempty"` // Holder.ID of who has the volume now
	// SizeBytes is the volume's size.
	SizeBytes int64     `json:"size_bytes,omitempty"`
	Count     int64     `json:"count,omitempty"`
	Until     time.Time `json:"until,omitzero"`
}

// Severity returns how much the event wants a person.
func (e Event) Severity() EventSeverity {
	switch e.Kind {
	case EventNodeDown, EventRecovered:
		return SeverityError
	case EventNodeSuspect, EventVolumeTaken, EventVolumeDetached:
		return SeverityWarning
	case EventReplicaPlanned, EventReplicaLeaving:
		if e.Cause == CauseDown || e.Cause == CauseMissing {
			return SeverityWarning
		}
	case EventNodeRemoved:
		if e.Cause == CauseRecovery {
			return SeverityError
		}
	}
	return SeverityInfo
}

// eventTexts are what is said of events that need no more than their names.
var eventTexts = map[EventKind]string{
	EventNodeJoined:       "node %[1]s has joined the cluster",
	EventNodeSuspect:      "node %[1]s is silent",
	EventNodeDown:         "node %[1]s is down",
	EventNodeBack:         "node %[1]s is back",
	EventDrainBegun:       "node %[1]s begins to drain",
	EventDrained:          "node %[1]s has drained: it holds nothing any more",
	EventDrainEnded:       "node %[1]s takes its part again, and drains no more",
	EventMaintenanceEnded: "the maintenance of node %[1]s has ended",
	EventGroupAdded:       "group %[2]s is made, with its first replica on node %[1]s",
	EventReplicaPlanned:   "group %[2]s gets a replica on node %[1]s",
	EventReplicaAdded:     "group %[2]s: the replica on node %[1]s votes",
	EventReplicaStays:     "group %[2]s: the replica on node %[1]s stays after all",
	EventReplicaLeaving:   "group %[2]s: the replica on node %[1]s leaves",
	EventReplicaRemoved:   "group %[2]s: the replica on node %[1]s is removed",
	EventReplicaGivenUp:   "group %[2]s: the replica on node %[1]s is given up before it was whole",
	EventGroupWhole:       "group %[2]s has all its voters again",
	EventVolumeDeleted:    "volume %[3]s is deleted",
	EventVolumeDetached:   "volume %[3]s was taken from a holder that had not closed it",
}

// Text returns what has happened in words. It is made of the kind and what goes with it, and is empty for a kind that this build does not know.
func (e Event) Text() string {
	switch e.Kind {
	case EventNodeRemoved:
		if e.Cause == CauseRecovery {
			return "node " + e.NodeName + " was lost, and the cluster recovered without it"
		}
		return "node " + e.NodeName + " was removed"
	case EventMaintenanceBegun:
		return "node " + e.NodeName + " is in maintenance until " + e.Until.Format(time.RFC3339)
	case EventVolumeCreated:
		return fmt.Sprintf("volume %s is created with %d bytes", e.VolumeName, e.SizeBytes)
	case EventVolumeResized:
		return fmt.Sprintf("volume %s has %d bytes now", e.VolumeName, e.SizeBytes)
	case EventVolumeTaken:
		return "volume " + e.VolumeName + " was taken over by " + e.Holder
	case EventRecovered:
		return fmt.Sprintf("the cluster was recovered from the catalog of one node; nodes lost: %d", e.Count)
	}
	form, ok := eventTexts[e.Kind]
	if !ok {
		return ""
	}
	return fmt.Sprintf(form, e.NodeName, e.Group, e.VolumeName) + e.because()
}

// because returns the cause as the end of a sentence.
func (e Event) because() string {
	switch e.Cause {
	case CauseDown:
		return ", because node " + e.OtherName + " does not answer"
	case CauseDrain:
		return ", because node " + e.OtherName + " drains"
	case CauseMissing:
		return ", because it has too few"
	case CauseBalance:
		return ", for a better balance"
	}
	return ""
}
