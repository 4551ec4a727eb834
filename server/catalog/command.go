package catalog

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	storage "github.com/storaged/storaged"
)

// Command is a change of the catalog. Its implementations are the structs of this file.
//
// Each command may be applied twice: the comments say what the second time answers.
type Command interface {
	// name is the command's name in its encoding; it never changes.
	name() string
	// check finds what is wrong with the command whatever the state.
	check() error
	// apply changes the state, or returns an error and changes nothing.
	apply(s *State, res *Result) error
}

// InitCluster makes the cluster; it is the first command of every catalog. Again with the same id: no change.
type InitCluster struct {
	Cluster Cluster `json:"cluster"` // zero fields but ID and CreatedAt take the defaults
}

// RaiseVersion puts a version in force: from then on the nodes may use what came with it, and builds that do not know it
// stop. Again, or with a lower version than is in force: no change. The caller must know that every node knows the version.
type RaiseVersion struct {
	To int `json:"to"`
}

// AddNode makes a node known, up, and answers with its id. Again with the same stores: the id given the first time.
type AddNode struct {
	Name   string          `json:"name"` // empty: "node-<id>"
	Zone   string          `json:"zone,omitempty"`
	Addrs  storage.Addrs   `json:"addrs"`
	Stores []storage.Store `json:"stores"`
	At     time.Time       `json:"at"`
}

// UpdateNode replaces what a node says about itself. A store that holds replicas cannot be left out.
type UpdateNode struct {
	Node   storage.NodeID  `json:"node"`
	Name   string          `json:"name"`
	Zone   string          `json:"zone,omitempty"`
	Addrs  storage.Addrs   `json:"addrs"`
	Stores []storage.Store `json:"stores"`
}

// SetNodeState records a node's state. With From it is refused unless the node is in that state, so that a
// reconciler does not overrule what people decided meanwhile. Again: no change.
type SetNodeState struct {
	Node  storage.NodeID    `json:"node"`
	From  storage.NodeState `json:"from,omitempty"`
	State storage.NodeState `json:"state"`
	// Since is when a node that is silent was heard last; zero: not told. It came with version 8 of the rules.
	Since time.Time `json:"since,omitzero"`
}

// SetNodeIntent records what people want of a node. With From it is refused when they want something else of it by now. Again: no change.
type SetNodeIntent struct {
	Node   storage.NodeID     `json:"node"`
	Intent storage.NodeIntent `json:"intent"`         // empty: the node takes its part again
	Until  time.Time          `json:"until,omitzero"` // of maintenance
	From   storage.NodeIntent `json:"from,omitempty"`
	// Ended is the end of the maintenance that is over; zero: any. A reconciler does not end one that was made longer meanwhile.
	Ended time.Time `json:"ended,omitzero"`
}

// AddGroup makes group Group with one replica, a voter, on the store. Group is the id after the last one given
// out (State.NextGroup), so that applying the command again is seen as such.
type AddGroup struct {
	Group storage.GroupID `json:"group"`
	Node  storage.NodeID  `json:"node"`
	Store storage.StoreID `json:"store"`
}

// SetGroupReady records that the group's first replica runs: it is never bootstrapped again.
type SetGroupReady struct {
	Group storage.GroupID `json:"group"`
}

// PlanReplica adds a replica in role pulling and answers with its key: the store and a new incarnation. Again while
// the store has a replica of the group: the key given the first time.
type PlanReplica struct {
	Group storage.GroupID `json:"group"`
	Node  storage.NodeID  `json:"node"`
	Store storage.StoreID `json:"store"`
}

// SetReplica records a replica's role. One that leaves takes no other role again, unless it is to stay.
type SetReplica struct {
	Group storage.GroupID     `json:"group"`
	Key   storage.ReplicaKey  `json:"key"`
	Role  storage.ReplicaRole `json:"role"`
	// ConfigIndex is the log index of the group's configuration, committed, that Role was taken from; 0: none. It came with
	// version 3 of the rules.
	ConfigIndex uint64 `json:"config_index,omitempty"`
	// Stays: it was recorded as leaving, votes still, and is to be a voter again. It came with StayVersion.
	Stays bool `json:"stays,omitempty"`
}

// RemoveReplica forgets a replica that has left the group's configuration. Only pulling and leaving replicas can be
// removed. Again: no change.
type RemoveReplica struct {
	Group storage.GroupID    `json:"group"`
	Key   storage.ReplicaKey `json:"key"`
}

// CreateVolume makes a volume and answers with it. Again with the same request id, name, size, limits and labels: the same
// volume, for as long as it exists. Without a request id a second time is refused as a duplicate.
type CreateVolume struct {
	Name      string    `json:"name"`
	SizeBytes int64     `json:"size_bytes"`
	RequestID string    `json:"request_id,omitempty"`
	At        time.Time `json:"at"`
	// Limits came with version 2 of the rules.
	Limits storage.VolumeLimits `json:"limits,omitzero"`
	// Groups came with version 2 too. It is how many groups the volume is striped over, a power of two. When fewer groups are
	// ready, or when Groups is 0, it is the largest power of two of ready groups. StripeGroups says how many a volume should have.
	Groups int `json:"groups,omitempty"`
	// ProvisionPercent came with version 4. Unless it is 0, the volume is refused when the stores could not hold it full, and when
	// all volumes together would be larger than this percentage of what the stores hold (State.UsableBytes). It is part of the
	// command, and not of the rules, so that a volume that was made without it is made again when the log is read again.
	ProvisionPercent int `json:"provision_percent,omitempty"`
	// Labels came with version 5.
	Labels map[string]string `json:"labels,omitempty"`
}

// ResizeVolume grows a volume and answers with it. Again: no change.
type ResizeVolume struct {
	Volume    storage.VolumeRef `json:"volume"`
	SizeBytes int64             `json:"size_bytes"`
	// ProvisionPercent is as in CreateVolume.
	ProvisionPercent int `json:"provision_percent,omitempty"`
}

// SetVolumeLimits changes what a volume's users are held to, and answers with the volume. Again: no change. It came with
// version 2 of the rules.
type SetVolumeLimits struct {
	Volume storage.VolumeRef `json:"volume"`
	storage.LimitsChange
}

// SetVolumeLabels changes a volume's labels, and answers with the volume. Again: no change. It came with version 5 of the rules.
type SetVolumeLabels struct {
	Volume storage.VolumeRef `json:"volume"`
	storage.LabelChange
}

// DeleteVolume frees the name and begins the deletion. It is refused while the volume is attached. Again, by id: no change.
type DeleteVolume struct {
	Volume storage.VolumeRef `json:"volume"`
}

// FinishDelete forgets a volume that every group has deleted. Again: no change.
type FinishDelete struct {
	Volume storage.VolumeID `json:"volume"`
}

// Attach gives a holder the right to use a volume, and answers with the attachment and the volume. The same holder again on the
// same terms gets the attachment that it has. If other attachments are in the way, the command is refused, and says whose they are,
// unless TakeOver is set. An attachment for plain NBD clients gives way without TakeOver when its node is not up, or when its
// sessions have expired.
//
// When attachments ended, the volume's generation is higher than before, and Volume.Fenced is below it. The caller must then have
// every group of the volume refuse older generations (SetFenced) before it tells the holder.
type Attach struct {
	Volume   storage.VolumeRef `json:"volume"`
	Holder   storage.Holder    `json:"holder"`
	Access   storage.Access    `json:"access"`
	ReadOnly bool              `json:"read_only,omitempty"`
	// TakeOver ends every other attachment.
	TakeOver bool `json:"take_over,omitempty"`
	// IfGeneration, when not 0, makes a takeover one from that generation: another that came first is not undone.
	IfGeneration storage.Generation `json:"if_generation,omitempty"`
	At           time.Time          `json:"at"`
}

// Detach ends the attachment of a holder, with its sessions. It answers with the volume and, as predecessors, the sessions that
// have no attachment any more. The caller must close them in every group of the volume, and then in the catalog, before it tells
// anyone. The end of an exclusive attachment moves the generation as in Attach. Again, or without such an attachment or volume: no
// change.
type Detach struct {
	Volume storage.VolumeRef `json:"volume"`
	// Holder and Attachment say what ends: all that the holder has, that attachment, or, with both set, that attachment if
	// it is the holder's.
	Holder     string               `json:"holder,omitempty"`
	Attachment storage.AttachmentID `json:"attachment,omitempty"`
	// Machine, when it is said, is where the holder's gateway runs that asks: what another machine uses under the same
	// holder's name is not its to end, and stays.
	Machine storage.Machine `json:"machine,omitempty"`
	// Closed is the word of the holder's own gateway that nothing of it is on its way: every session was closed in every
	// group, and every read answered. The generation then stays, unless a session is left.
	Closed bool      `json:"closed,omitempty"`
	At     time.Time `json:"at"`
}

// SetFenced records that every group of the volume refuses generations below this one, and answers with the volume.
// Again: no change.
type SetFenced struct {
	Volume     storage.VolumeID   `json:"volume"`
	Generation storage.Generation `json:"generation"`
}

// OpenSession opens a volume at a gateway, under an attachment of its holder: KindFenced when that has ended, and
// KindUnavailable while the volume's generation is being moved. It answers with the volume (size, generation, epoch, groups), the
// session and its predecessors. The predecessors are the gateway's sessions on the volume that belong to another instance, that
// have expired, or that this one follows. The caller must close them in every group of the volume before it serves, and then in the
// catalog. An instance's read-only session and its writing one live beside each other.
//
// Again by the same instance with the same After and ReadOnly: the session it was given the first time, unless that
// has expired. A gateway that wants a new session, because the old one is over, names the old one in After.
type OpenSession struct {
	Volume     storage.VolumeRef    `json:"volume"`
	Gateway    Gateway              `json:"gateway"`
	Attachment storage.AttachmentID `json:"attachment"`
	Instance   string               `json:"instance"`
	// Machine and From are the session's. KindConflict while a session of the same host from another machine lives: the two
	// would take the volume from each other for ever, each over what the other has written.
	Machine storage.Machine `json:"machine,omitempty"`
	From    string          `json:"from,omitempty"`
	// After is the newest session that this gateway was given for the volume and wants no longer, zero if none: no
	// session at or below it is answered.
	After    storage.SessionID `json:"after,omitempty"`
	ReadOnly bool              `json:"read_only,omitempty"`
	At       time.Time         `json:"at"`
}

// CloseSession forgets a session that was closed in every group of its volume. Again: no change.
type CloseSession struct {
	Session storage.SessionID `json:"session"`
}

// ExpireSessions begins to close sessions whose gateways fell silent. Sessions that are gone are passed over.
type ExpireSessions struct {
	Sessions []storage.SessionID `json:"sessions"`
}

// Names of commands. The reserved ones come with later versions; a State of this version refuses them.
const (
	nameInitCluster    = "init_cluster"
	nameAddNode        = "add_node"
	nameUpdateNode     = "update_node"
	nameSetNodeState   = "set_node_state"
	nameAddGroup       = "add_group"
	nameSetGroupReady  = "set_group_ready"
	namePlanReplica    = "plan_replica"
	nameSetReplica     = "set_replica"
	nameRemoveReplica  = "remove_replica"
	nameCreateVolume   = "create_volume"
	nameResizeVolume   = "resize_volume"
	nameSetLimits      = "set_volume_limits"
	nameSetLabels      = "set_volume_labels"
	nameDeleteVolume   = "delete_volume"
	nameFinishDelete   = "finish_delete"
	nameOpenSession    = "open_session"
	nameCloseSession   = "close_session"
	nameExpireSessions = "expire_sessions"
	nameAttach         = "attach"
	nameDetach         = "detach"
	nameSetFenced      = "set_fenced"
	nameRaiseVersion   = "raise_version"
	nameSetNodeIntent  = "set_node_intent"

	nameBeginSnapshot  = "begin_snapshot"  // reserved: pause the gateways
	nameCommitSnapshot = "commit_snapshot" // reserved: epoch e -> e+1
	nameAbortSnapshot  = "abort_snapshot"  // reserved
)

func (InitCluster) name() string     { return nameInitCluster }
func (AddNode) name() string         { return nameAddNode }
func (UpdateNode) name() string      { return nameUpdateNode }
func (SetNodeState) name() string    { return nameSetNodeState }
func (AddGroup) name() string        { return nameAddGroup }
func (SetGroupReady) name() string   { return nameSetGroupReady }
func (PlanReplica) name() string     { return namePlanReplica }
func (SetReplica) name() string      { return nameSetReplica }
func (RemoveReplica) name() string   { return nameRemoveReplica }
func (CreateVolume) name() string    { return nameCreateVolume }
func (ResizeVolume) name() string    { return nameResizeVolume }
func (SetVolumeLimits) name() string { return nameSetLimits }
func (SetVolumeLabels) name() string { return nameSetLabels }
func (DeleteVolume) name() string    { return nameDeleteVolume }
func (FinishDelete) name() string    { return nameFinishDelete }
func (OpenSession) name() string     { return nameOpenSession }
func (CloseSession) name() string    { return nameCloseSession }
func (ExpireSessions) name() string  { return nameExpireSessions }
func (Attach) name() string          { return nameAttach }
func (Detach) name() string          { return nameDetach }
func (SetFenced) name() string       { return nameSetFenced }
func (RaiseVersion) name() string    { return nameRaiseVersion }
func (SetNodeIntent) name() string   { return nameSetNodeIntent }

// envelope is the encoded form of a command.
type envelope struct {
	Version int             `json:"v"`
	Name    string          `json:"cmd"`
	Body    json.RawMessage `json:"body"`
	// At is when the leader proposed the command, in Stamped; zero: it is not stamped.
	At time.Time `json:"at,omitzero"`
}

// versionRaise is the version that RaiseVersion came with.
const versionRaise = 6

// ProvisionVersion is the version that ProvisionPercent came with.
const ProvisionVersion = 4

// IntentVersion is the version that SetNodeIntent came with, and the time since when a node has been silent.
const IntentVersion = 8

// StayVersion is the version that SetReplica.Stays came with.
const StayVersion = 9

// versionOf returns the lowest version of the rules that knows the command. A node with older rules says that it does not know the
// command, and still takes the commands that were known before.
func versionOf(c Command) int {
	switch c := c.(type) {
	case Stamped:
		return max(EventsVersion, versionOf(c.Command))
	case RaiseVersion:
		return max(versionRaise, c.To) // who does not know the version stops here
	case InitCluster:
		return max(1, c.Cluster.Version)
	case SetVolumeLabels:
		return 5
	case SetVolumeLimits:
		return 2
	case SetNodeIntent:
		return IntentVersion
	case SetNodeState:
		if !c.Since.IsZero() {
			return IntentVersion
		}
	case SetReplica:
		if c.Stays {
			return StayVersion
		}
		if c.ConfigIndex != 0 {
			return 3
		}
	case Attach:
		if c.Access == storage.AccessReaders {
			return 4
		}
	case ResizeVolume:
		if c.ProvisionPercent != 0 {
			return ProvisionVersion
		}
	case CreateVolume:
		if len(c.Labels) > 0 {
			return 5
		}
		if c.ProvisionPercent != 0 {
			return ProvisionVersion
		}
		if c.Limits != (storage.VolumeLimits{}) || c.Groups != 0 {
			return 2
		}
	}
	return 1
}

// A command is sealed from where it is made to where it is applied: commandMagic, the crc32c of what follows, and JSON. Logs
// hold entries that were written before there was a seal, JSON alone; they are told apart by their first byte.
const (
	commandMagic     = "SCMD"
	commandSealBytes = len(commandMagic) + 4
)

func sealCommand(body []byte) []byte {
	b := make([]byte, 0, commandSealBytes+len(body))
	b = append(b, commandMagic...)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(body, castagnoli))
	return append(b, body...)
}

// unsealCommand returns the JSON of a sealed command. The error is of KindCorrupt.
func unsealCommand(b []byte) ([]byte, error) {
	if len(b) < commandSealBytes || string(b[:len(commandMagic)]) != commandMagic {
		return nil, storage.E("decode command", storage.KindCorrupt, "", errors.New("it does not begin as a command does"))
	}
	body := b[commandSealBytes:]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(b[len(commandMagic):]) {
		return nil, storage.E("decode command", storage.KindCorrupt, "", errors.New("its checksum does not match"))
	}
	return body, nil
}

// VerifyEntry returns why the entry of a log must not be stored: it is sealed and damaged. It looks no further.
func VerifyEntry(b []byte) error {
	if len(b) > 0 && b[0] == '{' {
		return nil
	}
	_, err := unsealCommand(b)
	return err
}

// Encode checks a command as far as that is possible without a state, and returns the bytes to replicate.
func Encode(c Command) ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	e := envelope{Version: versionOf(c), Name: c.name()}
	said := c
	if st, ok := c.(Stamped); ok {
		said, e.At = st.Command, st.At.UTC()
	}
	var err error
	if e.Body, err = json.Marshal(said); err != nil {
		return nil, storage.E("encode command", storage.KindInternal, c.name(), err)
	}
	b, err := json.Marshal(e)
	if err != nil {
		return nil, storage.E("encode command", storage.KindInternal, c.name(), err)
	}
	if b = sealCommand(b); len(b) > MaxCommandBytes {
		return nil, storage.E("encode command", storage.KindInvalid, c.name(),
			fmt.Errorf("it has %d bytes, at most %d are allowed", len(b), MaxCommandBytes))
	}
	return b, nil
}

// Decode is the inverse of Encode. It checks what Encode checks: its input may come from anyone. KindCorrupt: it is not what
// was encoded.
func Decode(b []byte) (Command, error) {
	if len(b) > MaxCommandBytes {
		return nil, storage.E("decode command", storage.KindInvalid, "",
			fmt.Errorf("it has %d bytes, at most %d are allowed", len(b), MaxCommandBytes))
	}
	body, err := unsealCommand(b)
	if err != nil {
		return nil, err
	}
	c, err := decodeCommand(body)
	if err != nil {
		return nil, err
	}
	return c, c.check()
}

// DecodeEntry decodes the entry of a log, which may be from before commands were sealed. An error is never the command's
// refusal: the entry was damaged (KindCorrupt, KindInvalid), or is of a later version (KindUnsupported). Whoever holds it must
// apply nothing from it on.
func DecodeEntry(b []byte) (Command, error) {
	if len(b) > 0 && b[0] == '{' {
		return decodeCommand(b)
	}
	body, err := unsealCommand(b)
	if err != nil {
		return nil, err
	}
	return decodeCommand(body)
}

// decodeCommand decodes the JSON of a command. It checks nothing that a state may refuse.
func decodeCommand(b []byte) (Command, error) {
	fail := func(kind storage.Kind, subject string, err error) (Command, error) {
		return nil, storage.E("decode command", kind, subject, err)
	}
	if len(b) > MaxCommandBytes {
		return fail(storage.KindInvalid, "", fmt.Errorf("it has %d bytes, at most %d are allowed", len(b), MaxCommandBytes))
	}
	var e envelope
	if err := decodeStrict(b, &e); err != nil {
		return fail(storage.KindInvalid, "", err)
	}
	if e.Version < 1 || e.Version > Version {
		return fail(storage.KindUnsupported, e.Name, fmt.Errorf("version %d, this node knows 1 to %d; upgrade it",
			e.Version, Version))
	}
	c, err := decodeBody(e.Name, e.Body)
	if err != nil {
		var se *storage.Error
		if errors.As(err, &se) {
			return nil, err
		}
		return fail(storage.KindInvalid, e.Name, err)
	}
	if !e.At.IsZero() {
		c = Stamped{Command: c, At: e.At}
	}
	if v := versionOf(c); e.Version < v {
		return fail(storage.KindInvalid, e.Name, fmt.Errorf("version %d, what it says came with %d", e.Version, v))
	}
	return c, nil
}

func decodeBody(name string, body []byte) (Command, error) {
	switch name {
	case nameInitCluster:
		return decodeAs[InitCluster](body)
	case nameAddNode:
		return decodeAs[AddNode](body)
	case nameUpdateNode:
		return decodeAs[UpdateNode](body)
	case nameSetNodeState:
		return decodeAs[SetNodeState](body)
	case nameAddGroup:
		return decodeAs[AddGroup](body)
	case nameSetGroupReady:
		return decodeAs[SetGroupReady](body)
	case namePlanReplica:
		return decodeAs[PlanReplica](body)
	case nameSetReplica:
		return decodeAs[SetReplica](body)
	case nameRemoveReplica:
		return decodeAs[RemoveReplica](body)
	case nameCreateVolume:
		return decodeAs[CreateVolume](body)
	case nameResizeVolume:
		return decodeAs[ResizeVolume](body)
	case nameSetLimits:
		return decodeAs[SetVolumeLimits](body)
	case nameSetLabels:
		return decodeAs[SetVolumeLabels](body)
	case nameDeleteVolume:
		return decodeAs[DeleteVolume](body)
	case nameFinishDelete:
		return decodeAs[FinishDelete](body)
	case nameOpenSession:
		return decodeAs[OpenSession](body)
	case nameCloseSession:
		return decodeAs[CloseSession](body)
	case nameExpireSessions:
		return decodeAs[ExpireSessions](body)
	case nameAttach:
		return decodeAs[Attach](body)
	case nameDetach:
		return decodeAs[Detach](body)
	case nameSetFenced:
		return decodeAs[SetFenced](body)
	case nameRaiseVersion:
		return decodeAs[RaiseVersion](body)
	case nameSetNodeIntent:
		return decodeAs[SetNodeIntent](body)
	case nameBeginSnapshot, nameCommitSnapshot, nameAbortSnapshot:
		return nil, storage.E("decode command", storage.KindUnsupported, name,
			errors.New("this version has no such command yet; upgrade the node"))
	default:
		return nil, storage.E("decode command", storage.KindUnsupported, name,
			errors.New("this node does not know the command; upgrade it"))
	}
}

func decodeAs[C Command](body []byte) (Command, error) {
	var c C
	if err := decodeStrict(body, &c); err != nil {
		return nil, err
	}
	return c, nil
}
