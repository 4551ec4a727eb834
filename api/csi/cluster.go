package csi

import (
	"context"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/host"
)

// Cluster is what the controller asks of a storaged cluster: a part of api.Cluster, which says what the methods promise.
// api/client implements it. A limit of 0 means all.
type Cluster interface {
	CreateVolume(ctx context.Context, v api.NewVolume) (api.Volume, error)
	Volume(ctx context.Context, name string) (api.Volume, error)
	Volumes(ctx context.Context, after string, limit int) ([]api.Volume, error)
	ResizeVolume(ctx context.Context, name string, sizeBytes int64) (api.Volume, error)
	ModifyVolume(ctx context.Context, name string, id storage.VolumeID, change api.VolumeChange) (api.Volume, error)
	DeleteVolume(ctx context.Context, name string, id storage.VolumeID) error
	Attach(ctx context.Context, n api.NewAttachment) (api.Attachment, error)
	Detach(ctx context.Context, d api.Detachment) error
	Attachments(ctx context.Context, f api.AttachmentFilter, after storage.AttachmentID, limit int) ([]api.Attachment, error)
	Nodes(ctx context.Context) ([]api.Node, error)
	Groups(ctx context.Context) ([]api.Group, error)
	Status(ctx context.Context) (api.Status, error)
}

// Devices is what the node service asks of the host's gateway; api/hostclient implements it. See host.Gateway for what
// the methods promise.
type Devices interface {
	Attach(ctx context.Context, request host.Request) (host.Attachment, error)
	Detach(ctx context.Context, volume string, force bool) error
	Refresh(ctx context.Context, volume string, sizeBytes int64) (host.Attachment, error)
	Allocated(ctx context.Context, volume string, attachmentID uint64) (bool, error)
	Attachments(ctx context.Context) ([]host.Attachment, error)
	Info(ctx context.Context) (host.Info, error)
}

var (
	_ Cluster = api.Cluster(nil)
	_ Devices = host.Gateway(nil)
)
