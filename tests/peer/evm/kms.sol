// SPDX-License-Identifier: Apache-2.0
// Contracts with the functions that a KMS reads (kms.md section 5), as small as the tests need them.
pragma solidity ^0.8.20;

struct BootInfo {
    address appId;
    bytes32 composeHash;
    address instanceId;
    bytes32 deviceId;
    bytes32 mrAggregated;
    bytes32 mrSystem;
    bytes32 osImageHash;
    string tcbStatus;
    string[] advisoryIds;
}

contract App {
    mapping(bytes32 => bool) public composeHashes;
    mapping(bytes32 => bool) public devices;
    bool public anyDevice;

    function addComposeHash(bytes32 hash) external {
        composeHashes[hash] = true;
    }

    function removeComposeHash(bytes32 hash) external {
        composeHashes[hash] = false;
    }

    function addDevice(bytes32 device) external {
        devices[device] = true;
    }

    function setAllowAnyDevice(bool any) external {
        anyDevice = any;
    }

    function isAppAllowed(BootInfo calldata boot) external view returns (bool, string memory) {
        if (!composeHashes[boot.composeHash]) return (false, "Compose hash not allowed");
        if (!anyDevice && !devices[boot.deviceId]) return (false, "Device not allowed");
        return (true, "");
    }
}

contract Kms {
    string public gatewayAppId = "gateway.example";
    address public appImplementation;
    mapping(address => App) public apps;
    mapping(bytes32 => bool) public images;
    mapping(bytes32 => bool) public aggregated;

    function deployAndRegisterApp(address appId) external returns (address) {
        apps[appId] = new App();
        appImplementation = address(apps[appId]);
        return appImplementation;
    }

    function addOsImageHash(bytes32 hash) external {
        images[hash] = true;
    }

    function addKmsAggregatedMr(bytes32 mr) external {
        aggregated[mr] = true;
    }

    function isAppAllowed(BootInfo calldata boot) external view returns (bool, string memory) {
        if (address(apps[boot.appId]) == address(0)) return (false, "App not registered");
        if (!images[boot.osImageHash]) return (false, "OS image is not allowed");
        return apps[boot.appId].isAppAllowed(boot);
    }

    function isKmsAllowed(BootInfo calldata boot) external view returns (bool, string memory) {
        require(boot.advisoryIds.length == 0, "advisories are not welcome");
        if (keccak256(bytes(boot.tcbStatus)) != keccak256("UpToDate")) return (false, "TCB status is not up to date");
        if (!aggregated[boot.mrAggregated]) return (false, "Aggregated MR not allowed");
        return (true, "");
    }
}
