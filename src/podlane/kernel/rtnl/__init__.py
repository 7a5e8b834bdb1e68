"""Links, addresses, routes, neighbours and forwarding entries over rtnetlink."""

from podlane.kernel.rtnl.addresses import InterfaceAddress as InterfaceAddress
from podlane.kernel.rtnl.links import Link as Link
from podlane.kernel.rtnl.links import Vxlan as Vxlan
from podlane.kernel.rtnl.neighbours import KernelFdb as KernelFdb
from podlane.kernel.rtnl.neighbours import KernelNeighbour as KernelNeighbour
from podlane.kernel.rtnl.routes import PROTOCOL as PROTOCOL
from podlane.kernel.rtnl.routes import KernelRoute as KernelRoute
from podlane.kernel.rtnl.routes import RouteKind as RouteKind
from podlane.kernel.rtnl.rtnl import Rtnl as Rtnl
