package api

import (
	"context"
	"errors"
	"strconv"
	"time"

	storage "github.com/storaged/storaged"
	pb "github.com/storaged/storaged/proto/storage/v1"
)

// Access says who else may use a volume.
type Access string

// The access modes.
const (
	// AccessExclusive: nobody.
	AccessExclusive Access = "exclusive"
	// AccessShared: others who share it too.
	AccessShared Access = "shared"
)

// HolderKind says what a holder is.
type HolderKind string

// The kinds of holders.
const (
	// HolderHost is a host, by its own gateway.
	HolderHost HolderKind = "host"
	// HolderNBD is a node, for the plain NBD clients that are connected to it. Only nodes attach as this kind.
	HolderNBD HolderKind = "nbd"
)

// Holder is who may use a volume.
type Holder struct {
	// ID names the holder: 1 to MaxHolderBytes letters, digits and - . _ : / @, beginning with a letter or digit. Those of
	// nodes begin with "nbd:", no others do.
	ID   string
	Kind HolderKind
	// Host is the host's name, for people; may be empty.
	Host string
	// Node is set for kind HolderNBD.
	Node storage.NodeID
	// Machine is where the host's gateway runs: an id of the machine, a dot, and one of its present boot. It does not make
	// another holder, but tells two machines apart that give one ID. Empty: not said.
	Machine string
}

// MaxHolderBytes bounds Holder.ID.
const MaxHolderBytes = 128

// Attachment is a holder's right to use a volume.
type Attachment struct {
	ID         storage.AttachmentID
	VolumeID   storage.VolumeID
	Volume     string // its name
	Holder     Holder
	Access     Access
	ReadOnly   bool
	Generation storage.Generation // of the volume; what carries an older one is refused
	Since      time.Time
	// Silent: its gateway was not heard of for a while.
	Silent bool
}

// VolumeRef points at a volume by its name, its id, or both: then they must belong together. The id of a volume never
// comes to mean another one.
type VolumeRef struct {
	Name string
	ID   storage.VolumeID
}

// String returns what an error message calls the volume.
func (r VolumeRef) String() string {
	if r.Name != "" {
		return "volume " + r.Name
	}
	return "volume " + r.ID.String()
}

// NewAttachment asks for an attachment.
type NewAttachment struct {
	Volume VolumeRef
	Holder Holder
	// Access is AccessExclusive when empty.
	Access   Access
	ReadOnly bool
	// TakeOver ends every other attachment, whatever its holder is doing.
	TakeOver bool
	// IfGeneration, with TakeOver: only if the volume's generation is still this one; 0: whichever it is. Of two holders
	// that take over at once one wins and the other is told (KindConflict).
	IfGeneration storage.Generation
}

// Detachment asks for the end of an attachment.
type Detachment struct {
	Volume   VolumeRef
	HolderID string
	// Attachment, when not 0: only this one; a later one of the same holder stays.
	Attachment storage.AttachmentID
	// Machine, when it is said, is as in Holder: what another machine uses under the same holder's name stays.
	Machine string
}

// AttachmentFilter selects attachments; empty fields select all.
type AttachmentFilter struct {
	Volume   string // name
	HolderID string
}

// attachments implements the service Attachments.
type attachments struct {
	pb.UnimplementedAttachmentsServer
	cluster Cluster
}

// Attach implements pb.AttachmentsServer.
func (s *attachments) Attach(ctx context.Context, r *pb.AttachRequest) (*pb.AttachResponse, error) {
	const op = "attach"
	n := NewAttachmentFromProto(r)
	if r.GetAccess() == pb.Access_ACCESS_UNSPECIFIED {
		n.Access = AccessExclusive
	}
	if err := n.Volume.check(op); err != nil {
		return nil, err
	}
	if err := n.check(); err != nil {
		return nil, storage.E(op, storage.KindInvalid, n.Volume.String(), err)
	}
	a, err := s.cluster.Attach(ctx, n)
	if err != nil {
		return nil, err
	}
	return &pb.AttachResponse{Attachment: AttachmentToProto(a)}, nil
}

// check returns what is wrong with the form of a request; the catalog checks the characters of the holder's id.
func (n *NewAttachment) check() error {
	switch {
	case n.Access != AccessExclusive && n.Access != AccessShared:
		return errors.New("the access mode is not known here; use exclusive or shared")
	case n.Holder.Kind != HolderHost:
		return errors.New("holders attach as hosts; those of plain NBD clients are made by their nodes")
	case n.IfGeneration != 0 && !n.TakeOver:
		return errors.New("a generation says from which one to take over; set take_over too")
	}
	return checkHolderID(n.Holder.ID)
}

func checkHolderID(id string) error {
	if id == "" || len(id) > MaxHolderBytes {
		return errors.New("the holder's id has " + strconv.Itoa(len(id)) + " characters; use 1 to " + strconv.Itoa(MaxHolderBytes))
	}
	return nil
}

func (r VolumeRef) check(op string) error {
	if r.Name == "" && r.ID == 0 {
		return storage.E(op, storage.KindInvalid, "", errors.New("the request names no volume; give its name or its id"))
	}
	if r.Name == "" {
		return nil
	}
	return checkName(op, r.Name)
}

// Detach implements pb.AttachmentsServer.
func (s *attachments) Detach(ctx context.Context, r *pb.DetachRequest) (*pb.DetachResponse, error) {
	const op = "detach"
	d := Detachment{Volume: VolumeRef{Name: r.GetVolume(), ID: storage.VolumeID(r.GetVolumeId())}, HolderID: r.GetHolderId(),
		Attachment: storage.AttachmentID(r.GetAttachmentId()), Machine: r.GetMachine()}
	if err := d.Volume.check(op); err != nil {
		return nil, err
	}
	if err := checkHolderID(d.HolderID); err != nil {
		return nil, storage.E(op, storage.KindInvalid, d.Volume.String(), err)
	}
	if err := s.cluster.Detach(ctx, d); err != nil {
		return nil, err
	}
	return &pb.DetachResponse{}, nil
}

// List implements pb.AttachmentsServer. A page token is the id of the last attachment of the page before.
func (s *attachments) List(ctx context.Context, r *pb.ListAttachmentsRequest) (*pb.ListAttachmentsResponse, error) {
	const op = "list attachments"
	limit := int(r.GetPageSize())
	if limit <= 0 || limit > MaxPageSize {
		limit = MaxPageSize
	}
	f := AttachmentFilter{Volume: r.GetVolume(), HolderID: r.GetHolderId()}
	if f.Volume != "" {
		if err := checkName(op, f.Volume); err != nil {
			return nil, err
		}
	}
	var after uint64
	if t := r.GetPageToken(); t != "" {
		var err error
		if after, err = strconv.ParseUint(t, 10, 64); err != nil {
			return nil, storage.E(op, storage.KindInvalid, "",
				errors.New("the page token is not one that this service gave out; begin with an empty one"))
		}
	}
	list, err := s.cluster.Attachments(ctx, f, storage.AttachmentID(after), limit+1) // one more says whether there is a next page
	if err != nil {
		return nil, err
	}
	answer := &pb.ListAttachmentsResponse{}
	if len(list) > limit {
		list = list[:limit]
		answer.NextPageToken = list[limit-1].ID.String()
	}
	answer.Attachments = each(list, AttachmentToProto)
	return answer, nil
}

var (
	accesses = []pair[Access, pb.Access]{
		{AccessExclusive, pb.Access_ACCESS_EXCLUSIVE},
		{AccessShared, pb.Access_ACCESS_SHARED},
	}
	holderKinds = []pair[HolderKind, pb.HolderKind]{
		{HolderHost, pb.HolderKind_HOLDER_KIND_HOST},
		{HolderNBD, pb.HolderKind_HOLDER_KIND_NBD},
	}
)

// AttachmentToProto is the inverse of AttachmentFromProto.
func AttachmentToProto(a Attachment) *pb.Attachment {
	return &pb.Attachment{Id: uint64(a.ID), VolumeId: uint64(a.VolumeID), Volume: a.Volume, Holder: holderToProto(a.Holder),
		Access: toWire(accesses, a.Access), ReadOnly: a.ReadOnly, Generation: uint64(a.Generation), Since: timeToProto(a.Since),
		Silent: a.Silent}
}

// AttachmentFromProto reads a message; absent fields are zero values.
func AttachmentFromProto(a *pb.Attachment) Attachment {
	return Attachment{ID: storage.AttachmentID(a.GetId()), VolumeID: storage.VolumeID(a.GetVolumeId()), Volume: a.GetVolume(),
		Holder: holderFromProto(a.GetHolder()), Access: fromWire(accesses, a.GetAccess()), ReadOnly: a.GetReadOnly(),
		Generation: storage.Generation(a.GetGeneration()), Since: timeFromProto(a.GetSince()), Silent: a.GetSilent()}
}

func holderToProto(h Holder) *pb.Holder {
	return &pb.Holder{Id: h.ID, Kind: toWire(holderKinds, h.Kind), Host: toValidUTF8(h.Host), Node: uint32(h.Node), Machine: toValidUTF8(h.Machine)}
}

func holderFromProto(h *pb.Holder) Holder {
	return Holder{ID: h.GetId(), Kind: fromWire(holderKinds, h.GetKind()), Host: h.GetHost(), Node: storage.NodeID(h.GetNode()), Machine: h.GetMachine()}
}

// NewAttachmentToProto is the inverse of NewAttachmentFromProto.
func NewAttachmentToProto(n NewAttachment) *pb.AttachRequest {
	return &pb.AttachRequest{Volume: n.Volume.Name, VolumeId: uint64(n.Volume.ID), Holder: holderToProto(n.Holder),
		Access: toWire(accesses, n.Access), ReadOnly: n.ReadOnly, TakeOver: n.TakeOver, IfGeneration: uint64(n.IfGeneration)}
}

// NewAttachmentFromProto reads a message; absent fields are zero values.
func NewAttachmentFromProto(r *pb.AttachRequest) NewAttachment {
	return NewAttachment{Volume: VolumeRef{Name: r.GetVolume(), ID: storage.VolumeID(r.GetVolumeId())},
		Holder: holderFromProto(r.GetHolder()), Access: fromWire(accesses, r.GetAccess()), ReadOnly: r.GetReadOnly(),
		TakeOver: r.GetTakeOver(), IfGeneration: storage.Generation(r.GetIfGeneration())}
}

// VolumeRef points at the attached volume.
func (a Attachment) VolumeRef() VolumeRef { return VolumeRef{Name: a.Volume, ID: a.VolumeID} }
