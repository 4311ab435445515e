package node

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"
	pluginregistration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// registrySocket is in the folder in which the kubelet finds plugins.
const registrySocket = "/var/lib/kubelet/plugins_registry/" + driverName + "-reg.sock"

// register starts a server that registers the driver with the kubelet.
func (n *Node) register() error {
	listener, err := net.Listen("unix", registrySocket)
	if err != nil {
		return fmt.Errorf("register the driver: %w", err)
	}
	server := grpc.NewServer()
	pluginregistration.RegisterRegistrationServer(server, registrar{})
	n.registration = server
	n.servers = append(n.servers, func() error { server.Stop(); return nil })
	go func() { _ = server.Serve(listener) }() // ends when it is stopped
	return nil
}

// registrar replaces the driver's node-driver-registrar. If a registration fails, the driver is
// missing in the CSINode.
type registrar struct {
	pluginregistration.UnimplementedRegistrationServer
}

// GetInfo returns the socket of the driver.
func (registrar) GetInfo(context.Context, *pluginregistration.InfoRequest) (*pluginregistration.PluginInfo, error) {
	return &pluginregistration.PluginInfo{
		Type: pluginregistration.CSIPlugin, Name: driverName, Endpoint: driverSocket, SupportedVersions: []string{"1.0.0"},
	}, nil
}

// NotifyRegistrationStatus ignores the status.
func (registrar) NotifyRegistrationStatus(context.Context, *pluginregistration.RegistrationStatus) (*pluginregistration.RegistrationStatusResponse, error) {
	return &pluginregistration.RegistrationStatusResponse{}, nil
}
