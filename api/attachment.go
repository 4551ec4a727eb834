package api

import (
	"context"
	"errors"
	"strconv"

	storage "github.com/storaged/storaged"
	pb "github.com/storaged/storaged/proto/storage/v1"
)

// Attachment is an attachment as the API shows it; its Holder's Machine stays among the nodes.
type Attachment struct {
	storage.Attachment
	VolumeName string
}

// NewAttachment asks for an attachment.
type NewAttachment struct {
	Volume storage.VolumeRef
	Holder storage.Holder
	// Access is AccessExclusive when empty.
	Access storage.Access
	// ReadOnly is meant with AccessReaders whether it is said or not.
	ReadOnly bool
	// TakeOver ends every other attachment, whatever its holder is doing.
	TakeOver bool
	// IfGeneration, with TakeOver: only if the volume's generation is still this one; 0: whichever it is. Of two holders
	// that take over at once one wins and the other is told (KindConflict).
	IfGeneration storage.Generation
}

// Detachment asks for the end of an attachment.
type Detachment struct {
	Volume   storage.VolumeRef
	HolderID string
	// Attachment, when not 0: only this one; a later one of the same holder stays.
	Attachment storage.AttachmentID
	// Machine, when it is said, is as in Holder: what another machine uses under the same holder's name stays.
	Machine storage.Machine
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
		n.Access = storage.AccessExclusive
	}
	n.ReadOnly = n.ReadOnly || n.Access == storage.AccessReaders
	if err := checkRef(op, n.Volume); err != nil {
		return nil, err
	}
	if err := n.check(); err != nil {
		return nil, storage.E(op, storage.KindInvalid, n.Volume.String(), err)
	}
	a, err := s.cluster.Attach(ctx, n)
	return &pb.AttachResponse{Attachment: AttachmentToProto(a)}, err
}

// check returns what is wrong with the form of a request; the catalog checks the characters of the holder's id.
func (n *NewAttachment) check() error {
	switch {
	case !n.Access.Valid():
		return errors.New("the access mode is not known here; use exclusive, shared or readers")
	case n.Holder.Kind != storage.HolderHost:
		return errors.New("holders attach as hosts; those of plain NBD clients are made by their nodes")
	case n.IfGeneration != 0 && !n.TakeOver:
		return errors.New("a generation says from which one to take over; set take_over too")
	}
	return checkHolderID(n.Holder.ID)
}

func checkHolderID(id string) error {
	if id == "" || len(id) > storage.MaxHolderBytes {
		return errors.New("the holder's id has " + strconv.Itoa(len(id)) + " characters; use 1 to " + strconv.Itoa(storage.MaxHolderBytes))
	}
	return nil
}

// checkRef returns what is wrong with the form of a reference.
func checkRef(op string, r storage.VolumeRef) error {
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
	d := Detachment{Volume: storage.VolumeRef{Name: r.GetVolume(), ID: storage.VolumeID(r.GetVolumeId())}, HolderID: r.GetHolderId(),
		Attachment: storage.AttachmentID(r.GetAttachmentId()), Machine: storage.Machine(r.GetMachine())}
	if err := checkRef(op, d.Volume); err != nil {
		return nil, err
	}
	if err := checkHolderID(d.HolderID); err != nil {
		return nil, storage.E(op, storage.KindInvalid, d.Volume.String(), err)
	}
	return &pb.DetachResponse{}, s.cluster.Detach(ctx, d)
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
	answer.Attachments = Each(list, AttachmentToProto)
	return answer, nil
}

var (
	accesses = EnumTable[storage.Access, pb.Access]{
		{storage.AccessExclusive, pb.Access_ACCESS_EXCLUSIVE},
		{storage.AccessShared, pb.Access_ACCESS_SHARED},
		{storage.AccessReaders, pb.Access_ACCESS_READERS},
	}
	holderKinds = EnumTable[storage.HolderKind, pb.HolderKind]{
		{storage.HolderHost, pb.HolderKind_HOLDER_KIND_HOST},
		{storage.HolderNBD, pb.HolderKind_HOLDER_KIND_NBD},
	}
)

// AttachmentToProto is the inverse of AttachmentFromProto.
func AttachmentToProto(a Attachment) *pb.Attachment {
	return &pb.Attachment{Id: uint64(a.ID), VolumeId: uint64(a.Volume), Volume: a.VolumeName, Holder: holderToProto(a.Holder),
		Access: accesses.ToProto(a.Access), ReadOnly: a.ReadOnly, Generation: uint64(a.Generation), Since: TimeToProto(a.Since),
		Silent: a.Silent}
}

// AttachmentFromProto reads a message; absent fields are zero values.
func AttachmentFromProto(a *pb.Attachment) Attachment {
	return Attachment{VolumeName: a.GetVolume(), Attachment: storage.Attachment{ID: storage.AttachmentID(a.GetId()),
		Volume: storage.VolumeID(a.GetVolumeId()), Holder: holderFromProto(a.GetHolder()), Access: accesses.FromProto(a.GetAccess()),
		ReadOnly: a.GetReadOnly(), Generation: storage.Generation(a.GetGeneration()), Since: TimeFromProto(a.GetSince()), Silent: a.GetSilent()}}
}

func holderToProto(h storage.Holder) *pb.Holder {
	return &pb.Holder{Id: h.ID, Kind: holderKinds.ToProto(h.Kind), Host: toValidUTF8(h.Host), Node: uint32(h.Node), Machine: toValidUTF8(string(h.Machine))}
}

func holderFromProto(h *pb.Holder) storage.Holder {
	return storage.Holder{ID: h.GetId(), Kind: holderKinds.FromProto(h.GetKind()), Host: h.GetHost(), Node: storage.NodeID(h.GetNode()), Machine: storage.Machine(h.GetMachine())}
}

// NewAttachmentToProto is the inverse of NewAttachmentFromProto.
func NewAttachmentToProto(n NewAttachment) *pb.AttachRequest {
	return &pb.AttachRequest{Volume: n.Volume.Name, VolumeId: uint64(n.Volume.ID), Holder: holderToProto(n.Holder),
		Access: accesses.ToProto(n.Access), ReadOnly: n.ReadOnly, TakeOver: n.TakeOver, IfGeneration: uint64(n.IfGeneration)}
}

// NewAttachmentFromProto reads a message; absent fields are zero values.
func NewAttachmentFromProto(r *pb.AttachRequest) NewAttachment {
	return NewAttachment{Volume: storage.VolumeRef{Name: r.GetVolume(), ID: storage.VolumeID(r.GetVolumeId())},
		Holder: holderFromProto(r.GetHolder()), Access: accesses.FromProto(r.GetAccess()), ReadOnly: r.GetReadOnly(),
		TakeOver: r.GetTakeOver(), IfGeneration: storage.Generation(r.GetIfGeneration())}
}

// VolumeRef points at the attached volume.
func (a Attachment) VolumeRef() storage.VolumeRef {
	return storage.VolumeRef{Name: a.VolumeName, ID: a.Volume}
}
